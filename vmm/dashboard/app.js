// The dashboard: follows the host, shows the page that the address names, and asks for the token.

import { changeToken, follow, whenAccessChanges, whenTokenIsNeeded } from "./api.js";
import { $, setClass, setHidden, setText } from "./dom.js";
import { HostPage } from "./host.js";
import { VmPage } from "./vm.js";

const KEPT_EVENTS = 256;

const hostPage = new HostPage();
const vmPage = new VmPage();
let page = null;
let moment = null;
let events = [];

/// A page that nobody sees costs nothing. What showing took can be seen in a profile, and by tests.
function show() {
  if (!moment || document.hidden) return;
  const start = performance.now();
  page.show(moment.figures, events);
  performance.measure("moment", { start });
  performance.clearMeasures("moment");
}

/// Goes to the page that the address names.
function route() {
  const match = /^#\/vm\/(.+)$/.exec(location.hash);
  const name = match ? decodeURIComponent(match[1]) : null;
  page?.leave();
  $("host-page").hidden = Boolean(name);
  $("vm-page").hidden = !name;
  document.title = name ? `${name} · Ballonet` : "Ballonet";
  page = name ? vmPage : hostPage;
  page.enter(name);
  show();
}

/// One dialog, however many ask at once.
let asking = null;
whenTokenIsNeeded(() => {
  asking ??= new Promise((resolve) => {
    const dialog = $("token-dialog");
    const field = $("token-form").elements.token;
    let token = null;
    field.value = "";
    $("token-form").onsubmit = (event) => {
      event.preventDefault();
      token = field.value.trim();
      dialog.close();
    };
    $("token-cancel").onclick = () => dialog.close();
    dialog.onclose = () => {
      asking = null;
      resolve(token);
    };
    dialog.showModal();
  });
  return asking;
});

/// Who has a token that may only read sees so, and cannot type what would be refused. Without one it is asked for in time.
whenAccessChanges(({ role, token }) => {
  const mayNotChange = Boolean(token) && role === "read";
  $("may-change").disabled = mayNotChange;
  setHidden($("may-not-change"), !mayNotChange);
  setText($("access"), token ? `${token.name}: ${role}` : "");
});
$("other-token").addEventListener("click", changeToken);

addEventListener("hashchange", () => {
  // The link past the head of the page is no other page.
  if (location.hash !== "#main") route();
});
document.addEventListener("visibilitychange", show);
route();
follow(
  (heard, isFirst) => {
    // A host that came back tells all that it remembers anew.
    events = (isFirst ? [] : events).concat(heard.events).slice(-KEPT_EVENTS);
    moment = heard;
    show();
  },
  (isThere) => {
    setClass($("connection"), isThere ? "live" : "lost");
    setText($("connection"), isThere ? "live" : "the host does not answer; trying again…");
  },
);
