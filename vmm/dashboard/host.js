// The host's page: what memory is used for, and who holds it.

import { Chart, History } from "./charts.js";
import { $, element, fillList, fillTerms, pageOf, setClass, setHidden, setText, setTitle } from "./dom.js";
import { showEvents } from "./events.js";
import { bytes, duration, range } from "./format.js";
import { fillBar, kindOf, touchLimitText, newBar, stateOf, stateText, statesOf } from "./memory.js";
import { hostFree, hostUse } from "./models.js";

/// What each state of memory means.
const MEANING = {
  high: "there is enough",
  clear: "enough; sharing looks harder",
  soft: "short: balloons inflate fast",
  hard: "short: beyond what balloons bring",
  low: "very short",
};

/// Columns of the table: what sorts them, what they show, and what is said beside it.
const COLUMNS = [
  { label: "Name", of: (vm) => vm.name },
  { label: "State", of: stateOf, text: stateText },
  { label: "Size", size: (vm) => vm.memsz },
  { label: "Target", size: (vm) => vm.sztgt, title: "What it should hold" },
  { label: "Holds", size: (vm) => vm.used, title: "Machine memory that it uses" },
  { label: "Working set", size: (vm) => vm.tchd, beside: (vm) => range(vm.tchd_low, vm.tchd_high), title: "What it uses, estimated from random pages, and between what that lies with 95 % confidence" },
  { label: "Balloon", size: (vm) => vm.mctlsz, title: "What its guest gave up" },
  { label: "Shared", size: (vm) => vm.shrd, title: "Guest memory that it shares" },
  { label: "Swapped", size: (vm) => vm.swcur, isRare: true },
  { label: "Shares", of: (vm) => vm.ashrs, isNumber: true, title: "Its weight when memory is short" },
];
const BAR = COLUMNS.length;
const isNumber = (column) => Boolean(column.size || column.isNumber);
const valueOf = (column, vm) => (column.size ?? column.of)(vm);

export class HostPage {
  constructor() {
    this.sort = { column: null, isDescending: false };
    /// Rows by name, in the order in which they are shown.
    this.rows = new Map();
    this.addHeadings();
  }

  enter() {
    const model = (make) => (history) => make(history, this.figures);
    this.charts = [new Chart("host-use", "Machine memory by use", model(hostUse)), new Chart("host-free", "Free memory and state", model(hostFree))];
    this.history = new History("/v1/history", this.charts, $("host-span"));
  }

  leave() {
    this.history.remove();
  }

  show(figures, events) {
    this.figures = figures;
    this.showTiles(figures.host);
    this.showQueue(figures.queue);
    this.showRows(figures.vms);
    showEvents($("events"), events, false);
    this.history.refresh();
  }

  showTiles(host) {
    const used = (100 * host.pmem_used) / host.pmem_total;
    const over = 100 * (host.configured / host.pmem_total - 1);
    fillTerms($("tiles"), [
      ["Memory", host.state, MEANING[host.state], `state state-${host.state}`],
      ["Used", bytes(host.pmem_used), `${used.toFixed(0)} % of ${bytes(host.pmem_total)}`],
      ["Free", bytes(host.pmem_free), `${bytes(host.minfree)} should be`],
      ["Configured", bytes(host.configured), over > 0 ? `${over.toFixed(0)} % above the budget` : "within the budget"],
      ["Saved by sharing", bytes(host.pshare_saving), `${bytes(host.pshare_shared)} in ${bytes(host.pshare_common)}`],
      ["In balloons", bytes(host.memctl_curr), `${bytes(host.memctl_target)} wanted`],
    ]);
  }

  /// Who waits to be admitted, the first in front, and why.
  showQueue(queue) {
    setHidden($("queue-panel"), queue.length === 0);
    const term = ({ name, memory_bytes: size, waited_s: waited, why }, index) => [`${index + 1}. ${name}`, `${bytes(size)}, waiting for ${duration(waited)}`, why];
    fillTerms($("queue"), queue.map(term));
  }

  addHeadings() {
    const headings = COLUMNS.map((column) => {
      const heading = element("th", undefined, { scope: "col", class: headingClass(column), ...(column.title ? { title: column.title } : {}) });
      const sorts = element("button", column.label, { type: "button" });
      sorts.addEventListener("click", () => this.sortBy(column));
      heading.append(sorts);
      return heading;
    });
    $("vms").tHead.rows[0].append(...headings, element("th", "Memory by state", { scope: "col" }));
  }

  /// By a column, then the other way, then in the order in which VMs came.
  sortBy(column) {
    const first = isNumber(column);
    const { sort } = this;
    if (sort.column !== column) this.sort = { column, isDescending: first };
    else if (sort.isDescending === first) this.sort = { column, isDescending: !first };
    else this.sort = { column: null, isDescending: false };
    const cells = $("vms").tHead.rows[0].cells;
    COLUMNS.forEach((each, index) => {
      if (each === this.sort.column) cells[index].setAttribute("aria-sort", this.sort.isDescending ? "descending" : "ascending");
      else cells[index].removeAttribute("aria-sort");
    });
    if (this.figures) this.showRows(this.figures.vms);
  }

  sorted(vms) {
    const { column, isDescending } = this.sort;
    if (!column) return vms;
    const before = (a, b) => (a === b ? 0 : (a ?? -1) < (b ?? -1) ? -1 : 1);
    const order = (a, b) => before(valueOf(column, a), valueOf(column, b));
    return [...vms].sort((a, b) => (isDescending ? order(b, a) : order(a, b)));
  }

  showRows(vms) {
    const body = $("vms").tBodies[0];
    const shown = this.sorted(vms);
    const rows = new Map(shown.map((vm) => [vm.name, this.rows.get(vm.name) ?? newRow(vm.name)]));
    const order = [...rows.keys()].join();
    if (order !== this.order) body.replaceChildren(...rows.values());
    Object.assign(this, { rows, order });
    shown.forEach((vm) => fillRow(rows.get(vm.name), vm));
    setClass($("vms"), vms.some((vm) => vm.swcur > 0) ? "" : "no-rare");
    setHidden($("no-vms"), vms.length > 0);
    setHidden($("vms-scroll"), vms.length === 0);
    setHidden($("key"), vms.length === 0);
    const states = statesOf(vms);
    fillList($("key"), states.join(), () => [...states.map(keyOf), keyOf("target")]);
  }
}

function headingClass(column) {
  return [isNumber(column) ? "number" : "", column.isRare ? "rare" : ""].join(" ").trim();
}

function newRow(name) {
  const row = element("tr", undefined, { "data-vm": name });
  COLUMNS.forEach((column) => row.append(element("td", undefined, { "data-label": column.label, class: headingClass(column) })));
  row.append(element("td", undefined, { "data-label": "Memory" }));
  row.cells[0].append(element("a", name, { href: pageOf(name) }), element("span", undefined, { class: "kind" }));
  row.cells[1].append(element("span"));
  COLUMNS.forEach((column, index) => {
    if (index > 1) row.cells[index].append(element("span"), ...(column.beside ? [element("small")] : []));
  });
  row.cells[BAR].append(newBar());
  return row;
}

function fillRow(row, vm) {
  COLUMNS.forEach((column, index) => {
    if (index === 0) return;
    const [main, beside] = row.cells[index].children;
    setText(main, column.size ? bytes(column.size(vm)) : String((column.text ?? column.of)(vm)));
    if (beside) setText(beside, column.beside(vm));
  });
  setText(row.cells[0].lastElementChild, kindOf(vm));
  const phase = row.cells[1].firstElementChild;
  setClass(phase, `phase phase-${stateOf(vm)}`);
  setTitle(phase, vm.touch_limit ? touchLimitText(vm) : "");
  fillBar(row.cells[BAR].firstElementChild, vm);
}

function keyOf(name) {
  const item = element("span");
  item.append(element("i", undefined, { class: name === "target" ? "swatch tick" : `swatch ${name}` }), name);
  return item;
}
