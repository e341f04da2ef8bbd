// A VM's page: what it holds and uses, why, and what changes that.

import { change, get } from "./api.js";
import { Chart, History } from "./charts.js";
import { $, element, fillList, fillTerms, pageOf, setClass, setHidden, setText } from "./dom.js";
import { showEvents } from "./events.js";
import { bytes, duration, parseSize, percent, range, typedSize } from "./format.js";
import { hasSwap, kindOf, touchLimitText, stateOf, stateText, statesOf } from "./memory.js";
import { vmStates, vmUse } from "./models.js";

const EXPLAIN_MS = 2000;

/// Sizes and numbers under esxtop's names. Of what is not there, nothing is shown.
const SIZES = ["memsz", "grant", "cnsm", "sztgt", "tchd", "tchd_w", "mctlsz", "mctltgt", "mctlmax", "zero", "shrd", "shrdsvd", "cowh", "broken", "large", "ovhd", "ovhdmax", "amin", "amax"];
const RARE_SIZES = ["swcur", "swtgt", "zip", "cachesz", "cacheusd"];
/// Sizes that go out and come back in a second, by their names there.
const RATES = [["SWR/s", "swr"], ["SWW/s", "sww"], ["ZIP/s", "zip_per_s"], ["UNZIP/s", "unzip_per_s"]];
const PERCENTAGES = ["actv", "actvs", "actvf"];

export class VmPage {
  constructor() {
    $("claims").addEventListener("submit", (event) => this.submit(event, $("claims-outcome"), () => this.setClaims()));
    $("balloon").addEventListener("submit", (event) => this.submit(event, $("balloon-outcome"), () => this.setBalloon()));
    $("more").addEventListener("submit", (event) => this.submit(event, $("more-answer"), () => this.askForMore()));
    this.fields = [...$("claims").elements, ...$("balloon").elements].filter((field) => field.name);
    const kinds = ["input", "change"];
    this.fields.forEach((field) => kinds.forEach((kind) => field.addEventListener(kind, () => (field.dataset.typed = "yes"))));
  }

  enter(name) {
    Object.assign(this, { name, path: `/v1/vms/${encodeURIComponent(name)}`, explained: 0 });
    setText($("vm-name"), name);
    fillList($("why"), `${name} nothing`, () => []);
    ["claims-outcome", "balloon-outcome", "more-answer"].forEach((id) => tell($(id), "", ""));
    this.fields.forEach((field) => delete field.dataset.typed);
    this.charts = [
      new Chart("vm-states", `${name}: memory by state`, (history) => vmStates(history, statesOf(this.vm ? [this.vm] : []))),
      new Chart("vm-use", `${name}: what it uses`, vmUse),
    ];
    this.history = new History(`/v1/history?vm=${encodeURIComponent(name)}`, this.charts, $("vm-span"));
  }

  leave() {
    this.history.remove();
  }

  show(figures, events) {
    this.figures = figures;
    this.vm = figures.vms.find((vm) => vm.name === this.name);
    setHidden($("vm-gone"), Boolean(this.vm));
    setText($("vm-gone"), absence(figures.queue.find(({ name }) => name === this.name)));
    setHidden($("vm-there"), !this.vm);
    showEvents($("vm-events"), events.filter((event) => event.vm === this.name), true);
    if (!this.vm) return setHidden($("vm-state"), true);
    this.showFigures(this.vm);
    this.fillFields(this.vm);
    this.history.refresh();
    this.explain();
  }

  showFigures(vm) {
    const state = stateOf(vm);
    setHidden($("vm-state"), false);
    setText($("vm-state"), stateText(vm));
    setText($("vm-kind"), kindOf(vm));
    setHidden($("vm-blocked"), state !== "blocked");
    setText($("vm-blocked"), vm.touch_limit ? `It is blocked. ${touchLimitText(vm)}` : "It is blocked.");
    setClass($("vm-state"), `phase phase-${state}`);
    fillTerms($("vm-tiles"), [
      ["Holds", bytes(vm.used), `of ${bytes(vm.memsz)}`],
      ["Target", bytes(vm.sztgt), isPinned(vm) ? "fixed by hand" : `with ${vm.ashrs} shares`],
      ["Working set", bytes(vm.tchd), range(vm.tchd_low, vm.tchd_high) || "not known yet", "", "What it uses, estimated from random pages, and between what that lies with 95 % confidence"],
      ["Policy assumes", bytes(vm.tchd_believed), "decides on its target", "", "What the policy takes its working set for, the highest of its estimate and three averages: quick to rise and slow to fall, so that a short pause costs it nothing"],
      ...(vm.touch_limit ? [[hasSwap(vm) ? "May hold" : "May touch", bytes(vm.touch_limit.slow_above_bytes), hasSwap(vm) ? "the rest goes out" : "slowed above that", "", touchLimitText(vm)]] : []),
      ["Balloon", bytes(vm.mctlsz), vm.mctl ? `${bytes(vm.mctltgt)} wanted` : "no driver in the guest yet"],
      ["Shared", bytes(vm.shrd), `${bytes(vm.shrdsvd)} saved`],
      ...(vm.zip + vm.swcur > 0 ? [["Out of memory", bytes(vm.zip + vm.swcur), `${bytes(vm.zip)} compressed in ${bytes(vm.cachesz)}`, "", "What its guest has not used for longest: compressed in memory, or in its swap file. A touch brings it back"]] : []),
      ["Large pages", bytes(vm.large), `${vm.large_made} made, ${vm.large_broken} broken`, "", "Guest memory that is mapped by pages of 2 MiB: made as long as there is memory for all that VMs may have, broken for balloons, to share and to watch pages"],
      ["Up", duration(vm.uptime_s), `${bytes(vm.amin)} guaranteed`],
    ]);
    const devices = [...vm.disks.map(diskTerm), ...vm.nets.map(netTerm)];
    setHidden($("devices-panel"), devices.length === 0);
    fillTerms($("vm-devices"), devices);
    const isThere = (name) => vm[name] !== null && vm[name] !== undefined;
    fillTerms($("vm-figures"), [
      ...[...SIZES, ...RARE_SIZES.filter((name) => vm[name] > 0)].filter(isThere).map((name) => [name.toUpperCase(), bytes(vm[name])]),
      ...RATES.filter(([, name]) => vm[name] > 0).map(([label, name]) => [label, bytes(vm[name])]),
      ...PERCENTAGES.filter(isThere).map((name) => [`%${name.toUpperCase()}`, percent(vm[name])]),
      ...(isThere("tchd_believed") ? [["BELIEF", bytes(vm.tchd_believed)]] : []),
      ...(vm.touch_limit ? [["TCHLIM", bytes(vm.touch_limit.slow_above_bytes)]] : []),
      ["%BLKD", percent(vm.blocked_permille / 10)],
      ["MCTL?", vm.mctl ? "Y" : "N"],
      ["ASHRS", String(vm.ashrs)],
      ["AREAS", String(vm.areas)],
      ["MRG/s", String(vm.merges_per_s)],
      ["BRK/s", String(vm.breaks_per_s)],
    ]);
  }

  /// Fields follow the VM, but for those in which somebody types.
  fillFields(vm) {
    const values = { shares: String(vm.ashrs), min: typedSize(vm.amin), max: typedSize(vm.amax), balloon: isPinned(vm) ? typedSize(vm.memsz - vm.pinned) : "auto" };
    for (const field of this.fields) {
      const isFree = !field.dataset.typed && document.activeElement !== field;
      if (isFree && field.value !== values[field.name]) field.value = values[field.name];
    }
  }

  async explain() {
    if (document.hidden || Date.now() - this.explained < EXPLAIN_MS) return;
    this.explained = Date.now();
    const { name } = this;
    const text = await get(`${this.path}/explanation`).then((answer) => answer.text, (error) => error.message);
    if (name === this.name) fillList($("why"), text, () => sentences(text).map((sentence) => this.said(sentence)));
  }

  /// A sentence in which other VMs can be gone to.
  said(sentence) {
    const item = element("li");
    for (const [index, part] of sentence.split(/'([^']+)'/).entries()) {
      const isOther = index % 2 && part !== this.name && this.figures.vms.some((vm) => vm.name === part);
      item.append(isOther ? element("a", part, { href: pageOf(part) }) : part);
    }
    return item;
  }

  async submit(event, outcome, act) {
    event.preventDefault();
    tell(outcome, "…", "");
    try {
      tell(outcome, await act(), "good");
    } catch (error) {
      tell(outcome, error.message, "bad");
    }
  }

  async setClaims() {
    const { shares, min, max } = $("claims").elements;
    const claims = { shares: shares.value.trim().toLowerCase(), min_bytes: parseSize(min.value), max_bytes: parseSize(max.value) };
    const vm = await change("PATCH", this.path, claims);
    [shares, min, max].forEach((field) => delete field.dataset.typed);
    return `Set: ${vm.shares_count} shares, min ${bytes(vm.min_bytes)}, max ${bytes(vm.max_bytes)}.`;
  }

  async setBalloon() {
    const field = $("balloon").elements.balloon;
    const text = field.value.trim().toLowerCase();
    await change("PUT", `${this.path}/balloon`, { balloon_bytes: text === "auto" ? null : parseSize(text) });
    delete field.dataset.typed;
    return text === "auto" ? "The policy decides on the balloon." : `The balloon is fixed at ${bytes(parseSize(text))}.`;
  }

  /// What it would take: the last sentence of an explanation that is asked for more.
  async askForMore() {
    const more = parseSize($("more").elements.more.value);
    const { text } = await get(`${this.path}/explanation?more_bytes=${more}`);
    return sentences(text).at(-1);
  }
}

/// Why a VM is not there.
function absence(queued) {
  if (!queued) return "There is no VM of this name now.";
  return `It has waited to be admitted for ${duration(queued.waited_s)}: ${queued.why}.`;
}

/// A disk: what it failed comes before what it did.
function diskTerm({ path, size_bytes, read_only, direct, raw, counters, last_error }, index) {
  const kind = [bytes(size_bytes), read_only && "read only", direct && "direct", raw && "raw"].filter(Boolean).join(", ");
  const did = `${counters.reads} reads (${bytes(counters.read_bytes)}), ${counters.writes} writes (${bytes(counters.written_bytes)}), ${counters.flushes} flushes`;
  const wrong = [
    [counters.errors, `I/O errors${last_error ? `, the last: ${last_error}` : ""}`],
    [counters.refused, "requests refused"],
    [counters.malformed, "malformed"],
  ];
  return deviceTerm(`Disk ${index}, ${kind}: ${path}`, did, wrong, counters.errors > 0);
}

function netTerm({ tap, mac, bytes_per_s, has_driver, counters }) {
  const kind = [mac, bytes_per_s && `${bytes(bytes_per_s)} a second`, !has_driver && "no driver in the guest yet"].filter(Boolean).join(", ");
  const did = `${counters.received_packets} packets in (${bytes(counters.received_bytes)}), ${counters.sent_packets} out (${bytes(counters.sent_bytes)})`;
  const wrong = [
    [counters.sent_refused, "packets not taken by the tap"],
    [counters.received_no_room, "had no room"],
    [counters.received_unwanted, "unwanted"],
    [counters.sent_too_long, "too long"],
    [counters.sent_bad_header, "with bad headers"],
    [counters.malformed, "malformed"],
  ];
  return deviceTerm(`Network card on ${tap}, ${kind}`, did, wrong, counters.sent_refused > 0);
}

function deviceTerm(name, did, wrong, isBad) {
  const told = wrong.filter(([count]) => count > 0).map(([count, what]) => `${count} ${what}`).join("; ");
  return isBad ? [name, told, did, "bad"] : [name, did, told];
}

const isPinned = (vm) => vm.pinned !== null && vm.pinned !== undefined;
const sentences = (text) => text.split(/(?<=\.) /);

function tell(outcome, text, kind) {
  setText(outcome, text);
  setClass(outcome, `outcome ${kind}`);
}
