// Elements that are made once and then only changed where something has changed, so that nothing flickers,
// focus stays where it is, and a hundred rows cost little.

export const $ = (id) => document.getElementById(id);

export function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  return made;
}

/// What elements were told last: to ask the page itself would cost more than to remember.
const told = new WeakMap();

/// Does something with an element if it was not done with this value already.
function once(node, key, value, act) {
  const known = told.get(node) ?? told.set(node, {}).get(node);
  if (known[key] === value) return;
  known[key] = value;
  act();
}

export const setText = (node, text) => once(node, "text", text, () => (node.textContent = text));
export const setClass = (node, name) => once(node, "class", name, () => (node.className = name));
export const setHidden = (node, isHidden) => once(node, "hidden", isHidden, () => (node.hidden = isHidden));
export const setLabel = (node, text) =>
  once(node, "label", text, () => {
    node.setAttribute("aria-label", text);
    node.title = text;
  });
export const setTitle = (node, text) => once(node, "title", text, () => (node.title = text));
export const setStyle = (node, name, value) => once(node, name, value, () => (node.style[name] = value));

/// Fills a list of terms: [term, value, what is said beside it, the value's class, what explains it].
export function fillTerms(list, terms) {
  while (list.children.length > terms.length) list.lastElementChild.remove();
  terms.forEach(([name, value, small, kind, title], index) => {
    const item = list.children[index] ?? list.appendChild(newTerm());
    setTitle(item, title ?? "");
    setText(item.firstElementChild, name);
    const [main, beside] = item.lastElementChild.children;
    setText(main, value);
    setClass(main, kind ?? "");
    setText(beside, small ?? "");
    setHidden(beside, !small);
  });
}

function newTerm() {
  const item = element("div");
  item.append(element("dt"), element("dd"));
  item.lastElementChild.append(element("span"), element("small"));
  return item;
}

export const pageOf = (vm) => `#/vm/${encodeURIComponent(vm)}`;

/// Replaces a list if `mark` tells that it is another.
export function fillList(list, mark, items) {
  once(list, "list", mark, () => list.replaceChildren(...items()));
}
