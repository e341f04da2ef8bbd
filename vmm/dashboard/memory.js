// A VM's memory by state: the states, their order from the bottom up, and the bar that shows them.

import { element, setLabel, setStyle } from "./dom.js";
import { bytes, percent } from "./format.js";

export const STATES = ["private", "broken", "shared", "compressed", "swapped", "ballooned", "empty"];
/// States of which nothing is shown while no memory is in them.
const RARE = ["compressed", "swapped"];

export function memoryOf(vm) {
  const { private: own, broken, shrd, zip, swcur, ballooned, empty } = vm;
  return { private: own, broken, shared: shrd, compressed: zip, swapped: swcur, ballooned, empty };
}

/// The states that some of these VMs have memory in, and those that any may have.
export function statesOf(vms) {
  return STATES.filter((state) => !RARE.includes(state) || vms.some((vm) => memoryOf(vm)[state] > 0));
}

export function stateOf(vm) {
  if (vm.phase !== "running") return vm.phase;
  if (!vm.responding) return "silent";
  if (vm.paused) return "paused";
  if (vm.stale) return "stale";
  if (!vm.credible) return "doubtful";
  return vm.blocked_permille > 0 ? "blocked" : "running";
}

/// Who runs it, if not this host.
export const kindOf = (vm) => (vm.kind === "qemu" ? "QEMU" : "");

/// The state, and how much of its time a blocked one loses.
export function stateText(vm) {
  const state = stateOf(vm);
  return state === "blocked" ? `blocked ${percent(blockedPercent(vm))}` : state;
}

/// Never nothing, of a VM that is blocked.
const blockedPercent = (vm) => Math.max(1, vm.blocked_permille / 10);

/// Whether its pages may go out of memory.
export const hasSwap = (vm) => vm.swtgt !== null && vm.swtgt !== undefined;

/// What keeps a VM from touching more memory.
export function touchLimitText(vm) {
  const { slow_above_bytes: slow, stop_above_bytes: stop } = vm.touch_limit;
  if (hasSwap(vm)) return `It may hold ${bytes(slow)}: what it holds above that goes out of memory.`;
  return `It may touch ${bytes(slow)}: above that it is stopped for nine tenths of its time, beyond ${bytes(stop)} it stands still.`;
}

export function newBar() {
  const bar = element("div", undefined, { class: "bar", role: "img" });
  STATES.forEach((state) => bar.append(element("span", undefined, { class: state })));
  bar.append(element("i", undefined, { class: "tick" }));
  return bar;
}

export function fillBar(bar, vm) {
  const parts = memoryOf(vm);
  const percent = (size) => `${((100 * size) / vm.memsz).toFixed(1)}%`;
  STATES.forEach((state, index) => setStyle(bar.children[index], "width", percent(parts[state])));
  setStyle(bar.lastElementChild, "left", percent(Math.min(vm.sztgt, 0.995 * vm.memsz)));
  const words = STATES.filter((state) => parts[state] > 0).map((state) => `${bytes(parts[state])} ${state}`);
  setLabel(bar, `${words.join(", ")}; target ${bytes(vm.sztgt)}`);
}
