// What each chart shows, as data alone: the page and a saved image are drawn from the same model.
//
// A series has a name, the name of its color, its values as they are told (`own`) and as they are placed
// (`values`), and what it is drawn as: an area down to the axis, an area down to another series (`downTo`),
// or a line. Series come in the order in which they are painted.

export const MEMORY_STATES = ["high", "clear", "soft", "hard", "low"];

const column = (history, name) => history.columns.find((column) => column.name === name)?.values ?? [];
const seconds = (history) => history.time_ms.map((ms) => ms / 1000);
const line = (name, color, own, more = {}) => ({ name, color, own, values: own, width: 2, ...more });

/// Areas on top of each other, given from the bottom up. An area reaches down to the axis, and those below
/// are painted over it.
function stack(history, names) {
  const sum = history.time_ms.map(() => 0);
  const areas = names.map((name) => {
    const own = column(history, name);
    own.forEach((value, index) => (sum[index] += value));
    return { name, color: name, own, values: [...sum], isArea: true };
  });
  return areas.reverse();
}

/// Machine memory by what it is used for. What is used above the line is more than the host likes.
export function hostUse(history, { host }) {
  const total = column(history, "budget");
  const isUsed = (name) => name !== "pool" || column(history, name).some((bytes) => bytes > 0);
  const uses = ["private", "broken", "common", "pool", "overhead", "free"].filter(isUsed);
  const ceiling = line("keep free", "ink", total.map(() => host.minfree), { dash: [6, 4], values: total.map((all) => all - host.minfree) });
  return {
    times: seconds(history),
    series: [...stack(history, uses), ceiling],
    scale: { low: 0, high: Math.max(...total, 1) },
  };
}

/// Free memory against the thresholds below which states begin. They are fractions of each other, and free
/// memory may be a hundred times as much: on a logarithmic scale each can be seen.
export function hostFree(history, { host }) {
  const below = host.state_below;
  const own = column(history, "free");
  const floor = 2 ** Math.floor(Math.log2(Math.max(below.low, 2) / 2));
  const high = 2 ** Math.ceil(Math.log2(Math.max(1.3 * Math.max(...own), 2 * below.clear)));
  const starts = [high, below.clear, below.soft, below.hard, below.low, floor];
  return {
    times: seconds(history),
    series: [line("free", "ink", own, { values: own.map((free) => Math.max(free, floor)) })],
    scale: { low: floor, high, isLog: true },
    zones: MEMORY_STATES.map((name, index) => ({ name, color: name, to: starts[index], from: starts[index + 1] })),
    ribbon: column(history, "state").map((degree) => MEMORY_STATES[degree]),
  };
}

/// A VM's memory by state.
export function vmStates(history, states) {
  return {
    times: seconds(history),
    series: [...stack(history, states), line("target", "ink", column(history, "target"), { dash: [6, 4] })],
    scale: { low: 0, high: Math.max(...column(history, "size"), 1) },
  };
}

/// What a VM uses, estimated, against what it holds and should hold.
export function vmUse(history) {
  const [low, high] = ["touched_low", "touched_high"].map((name) => column(history, name));
  return {
    times: seconds(history),
    series: [
      line("at most", "interval", high, { width: 1, downTo: 1 }),
      line("at least", "interval", low, { width: 1 }),
      line("holds", "private", column(history, "used")),
      line("target", "ink", column(history, "target"), { dash: [6, 4] }),
      line("working set", "use", column(history, "touched")),
    ],
    scale: { low: 0, high: Math.max(...column(history, "size"), 1) },
  };
}

/// Steps of a scale of sizes: powers of two, or multiples of one.
export function sizeTicks({ low, high, isLog }, most) {
  if (isLog) {
    const count = Math.log2(high / low);
    const every = Math.ceil(count / most);
    return Array.from({ length: Math.floor(count / every) + 1 }, (_, index) => low * 2 ** (index * every));
  }
  const step = 2 ** Math.ceil(Math.log2(high / most));
  return Array.from({ length: Math.floor(high / step) + 1 }, (_, index) => index * step);
}

const TIME_STEPS = [5, 10, 15, 30, 60, 120, 300, 600, 1200, 3600, 7200, 14_400, 21_600];

/// Steps of a scale of times, on full minutes or hours of this place.
export function timeTicks(from, to, most) {
  const step = TIME_STEPS.find((step) => (to - from) / step <= most) ?? TIME_STEPS.at(-1);
  const offset = new Date(from * 1000).getTimezoneOffset() * 60;
  const first = Math.ceil((from - offset) / step) * step + offset;
  const ticks = [];
  for (let tick = first; tick <= to; tick += step) ticks.push(tick);
  return { step, ticks };
}

export function timeText(at, step) {
  const parts = { hour: "2-digit", minute: "2-digit", ...(step < 60 ? { second: "2-digit" } : {}) };
  return new Date(at * 1000).toLocaleTimeString([], { hour12: false, ...parts });
}

/// Runs of equal neighbours: [value, first index, index after the last].
export function runs(values) {
  const found = [];
  values.forEach((value, index) => {
    const last = found.at(-1);
    if (last?.[0] === value) last[2] = index + 1;
    else found.push([value, index, index + 1]);
  });
  return found;
}
