// What happened, newest first.

import { element, fillList, pageOf } from "./dom.js";
import { clock } from "./format.js";

const SHOWN = 60;

/// `isOfOne` leaves out whom an event happened to.
export function showEvents(list, events, isOfOne) {
  const newest = events.slice(-SHOWN).reverse();
  const mark = `${newest.length} ${newest[0]?.time_ms} ${newest[0]?.vm} ${newest[0]?.what}`;
  fillList(list, mark, () => (newest.length ? newest.map((event) => item(event, isOfOne)) : [element("li", "Nothing has happened yet.", { class: "quiet" })]));
}

function item(event, isOfOne) {
  const made = element("li");
  made.append(element("time", clock(event.time_ms), { datetime: new Date(event.time_ms).toISOString() }));
  if (!isOfOne) made.append(event.vm ? element("a", event.vm, { href: pageOf(event.vm) }) : element("b", "host"));
  const what = element("span", event.what);
  made.append(what);
  return made;
}
