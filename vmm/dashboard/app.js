// The dashboard: the host's page, a page for each VM, and what changes them.

import { change, follow, whenTokenIsNeeded } from "./api.js";
import { Chart } from "./charts.js";
import { bytes, clock, duration, parseSize, typedSize } from "./format.js";

const KEPT_EVENTS = 256;
const STATES = ["private", "broken", "shared", "compressed", "swapped", "ballooned", "empty"];
const $ = (id) => document.getElementById(id);

let figures = null;
let events = [];
let chart = null;
let shown = null;
/// Claims are filled in once: what somebody types is not overwritten.
let filled = false;

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/// Fills a list of terms without making it anew, so that nothing flickers and focus stays.
function fillTerms(list, terms) {
  while (list.children.length > terms.length) list.lastElementChild.remove();
  terms.forEach(([name, value, small], index) => {
    let item = list.children[index];
    if (!item) {
      item = element("div");
      item.append(element("dt"), element("dd"));
      item.lastElementChild.append(element("span"), element("small"));
      list.append(item);
    }
    setText(item.firstElementChild, name);
    const [main, beside] = item.lastElementChild.children;
    setText(main, value);
    setText(beside, small ?? "");
    beside.hidden = !small;
  });
}

function stateOf(vm) {
  if (vm.phase !== "running") return vm.phase;
  return vm.responding ? "running" : "silent";
}

function memoryOf(vm) {
  const parts = { private: vm.private, broken: vm.broken, shared: vm.shrd, compressed: vm.zip, swapped: vm.swcur };
  const backed = Object.values(parts).reduce((sum, part) => sum + part, 0);
  return { ...parts, ballooned: Math.max(0, vm.memsz - backed - vm.empty), empty: vm.empty };
}

function fillBar(bar, vm) {
  const parts = memoryOf(vm);
  STATES.forEach((state, index) => {
    bar.children[index].style.width = `${(100 * parts[state]) / vm.memsz}%`;
  });
  const words = STATES.filter((state) => parts[state] > 0).map((state) => `${bytes(parts[state])} ${state}`).join(", ");
  bar.setAttribute("aria-label", words);
  bar.title = words;
}

function newBar() {
  const bar = element("div", undefined, { class: "bar", role: "img" });
  STATES.forEach((state) => bar.append(element("span", undefined, { class: state })));
  return bar;
}

const LABELS = ["Name", "State", "Size", "Target", "Holds", "Balloon", "Shared", "Working set", "Shares"];

function newRow(name) {
  const row = element("tr", undefined, { "data-vm": name });
  LABELS.forEach((label, index) => row.append(element("td", undefined, { "data-label": label, class: index > 1 ? "number" : "" })));
  row.firstElementChild.append(element("a", name, { href: `#/vm/${encodeURIComponent(name)}` }));
  row.append(element("td", undefined, { "data-label": "Memory" }));
  row.lastElementChild.append(newBar());
  return row;
}

function showRows(vms) {
  const body = $("vms").tBodies[0];
  const rows = new Map([...body.rows].map((row) => [row.dataset.vm, row]));
  for (const vm of vms) {
    const row = rows.get(vm.name) ?? body.appendChild(newRow(vm.name));
    rows.delete(vm.name);
    const values = [stateOf(vm), bytes(vm.memsz), bytes(vm.sztgt), bytes(vm.used), bytes(vm.mctlsz), bytes(vm.shrd), bytes(vm.tchd), String(vm.ashrs)];
    values.forEach((value, index) => setText(row.cells[index + 1], value));
    fillBar(row.lastElementChild.firstElementChild, vm);
  }
  rows.forEach((row) => row.remove());
  $("no-vms").hidden = vms.length > 0;
  $("vms").hidden = vms.length === 0;
}

function showEvents(list, wanted) {
  const newest = wanted.slice(-60).reverse();
  const mark = JSON.stringify(newest.length ? [newest.length, newest[0], shown] : []);
  if (list.dataset.mark === mark) return;
  list.dataset.mark = mark;
  list.replaceChildren(...newest.map((event) => {
    const item = element("li");
    item.append(element("time", clock(event.time_ms), { datetime: new Date(event.time_ms).toISOString() }));
    if (!shown) item.append(element("b", event.vm ?? "host"));
    item.append(event.what);
    return item;
  }));
  if (!newest.length) list.replaceChildren(element("li", "Nothing has happened yet.", { class: "quiet" }));
}

function overcommitted(host) {
  const percent = 100 * (host.configured / host.pmem_total - 1);
  return percent > 0 ? `${percent.toFixed(0)} % more than there is` : "all of it is there";
}

function showHost() {
  const { host, vms } = figures;
  const percent = (100 * host.pmem_used) / host.pmem_total;
  fillTerms($("tiles"), [
    ["Used", bytes(host.pmem_used), `${percent.toFixed(0)} % of ${bytes(host.pmem_total)}`],
    ["Free", bytes(host.pmem_free), host.state ? `state ${host.state}` : `at most ${bytes(host.used_max)} were used`],
    ["Configured", bytes(host.configured), overcommitted(host)],
    ["Saved by sharing", bytes(host.pshare_saving), `${bytes(host.pshare_shared)} in ${bytes(host.pshare_common)}`],
    ["In balloons", bytes(host.memctl_curr), `${bytes(host.memctl_target)} wanted`],
  ]);
  showRows(vms);
  showEvents($("events"), events);
}

function showVm(name) {
  const vm = figures.vms.find((vm) => vm.name === name);
  $("vm-gone").hidden = Boolean(vm);
  document.querySelectorAll("#claims *, #balloon *").forEach((control) => (control.disabled = !vm));
  showEvents($("vm-events"), events.filter((event) => event.vm === name));
  if (!vm) return;
  fillTerms($("vm-tiles"), [
    ["State", stateOf(vm), `for ${duration(vm.uptime_s)}`],
    ["Holds", bytes(vm.used), `of ${bytes(vm.memsz)}`],
    ["Target", bytes(vm.sztgt), vm.pinned !== null ? "fixed by hand" : "by its shares"],
    ["Balloon", bytes(vm.mctlsz), vm.mctl ? `${bytes(vm.mctltgt)} wanted` : "no driver in the guest yet"],
    ["Shared", bytes(vm.shrd), `${bytes(vm.shrdsvd)} saved`],
  ]);
  const sizes = ["memsz", "grant", "cnsm", "sztgt", "tchd", "mctlsz", "mctltgt", "mctlmax", "swcur", "zip", "zero", "shrd", "shrdsvd", "broken", "ovhd", "ovhdmax", "amin", "amax"];
  const numbers = ["ashrs", "areas", "merges_per_s", "breaks_per_s"];
  fillTerms($("vm-figures"), [
    ...sizes.filter((name) => vm[name] !== null && vm[name] !== undefined).map((name) => [name.toUpperCase(), bytes(vm[name])]),
    ...numbers.map((name) => [name.toUpperCase().replaceAll("_PER_S", "/s"), String(vm[name])]),
  ]);
  if (!filled) fillClaims(vm);
}

function fillClaims(vm) {
  filled = true;
  const claims = $("claims").elements;
  claims.shares.value = vm.ashrs;
  claims.min.value = typedSize(vm.amin);
  claims.max.value = typedSize(vm.amax);
  $("balloon").elements.balloon.value = vm.pinned === null || vm.pinned === undefined ? "auto" : typedSize(vm.memsz - vm.pinned);
}

function show() {
  if (!figures) return;
  if (shown) showVm(shown);
  else showHost();
  chart?.refresh();
}

/// Goes to the page that the address names.
function route() {
  const match = /^#\/vm\/(.+)$/.exec(location.hash);
  const name = match ? decodeURIComponent(match[1]) : null;
  if (chart && name === shown) return;
  chart?.remove($(shown ? "vm-tools" : "host-tools"));
  shown = name;
  filled = false;
  $("host-page").hidden = Boolean(name);
  $("vm-page").hidden = !name;
  $("outcome").textContent = "";
  document.title = name ? `${name} · Ballonet` : "Ballonet";
  setText($("vm-name"), name ?? "");
  chart = name
    ? new Chart($("vm-chart"), $("vm-tools"), { path: `/v1/history?vm=${encodeURIComponent(name)}`, name: `${name}: memory by state`, stack: STATES, lines: ["target"] })
    : new Chart($("host-chart"), $("host-tools"), { path: "/v1/history", name: "Machine memory by use", stack: ["private", "broken", "common", "overhead", "free"], lines: [] });
  show();
}

async function act(what) {
  const outcome = $("outcome");
  outcome.className = "";
  outcome.textContent = "…";
  try {
    outcome.textContent = await what();
    outcome.className = "good";
  } catch (error) {
    outcome.textContent = error.message;
    outcome.className = "bad";
  }
}

$("claims").addEventListener("submit", (event) => {
  event.preventDefault();
  const { shares, min, max } = event.target.elements;
  act(async () => {
    const claims = { shares: shares.value.trim(), min_bytes: parseSize(min.value), max_bytes: parseSize(max.value) };
    const vm = await change("PATCH", `/v1/vms/${encodeURIComponent(shown)}`, claims);
    return `Set: ${vm.shares_count} shares, min ${bytes(vm.min_bytes)}, max ${bytes(vm.max_bytes)}.`;
  });
});

$("balloon").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = event.target.elements.balloon.value.trim();
  act(async () => {
    const balloon = { balloon_bytes: text === "auto" ? null : parseSize(text) };
    await change("PUT", `/v1/vms/${encodeURIComponent(shown)}/balloon`, balloon);
    return text === "auto" ? "The policy decides on the balloon." : `The balloon is fixed at ${text}.`;
  });
});

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

STATES.forEach((state) => {
  const item = element("span", undefined);
  item.append(element("i", undefined, { class: `swatch ${state}` }), state);
  $("key").append(item);
});

addEventListener("hashchange", route);
route();
follow(
  (moment, isFirst) => {
    // A host that came back tells all that it remembers anew.
    events = (isFirst ? [] : events).concat(moment.events).slice(-KEPT_EVENTS);
    figures = moment.figures;
    show();
  },
  (isThere) => {
    const connection = $("connection");
    connection.className = isThere ? "live" : "lost";
    setText(connection, isThere ? "live" : "the host does not answer; trying again…");
  },
);
