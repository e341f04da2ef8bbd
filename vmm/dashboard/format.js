// Sizes and times as people read and type them.

const UNITS = [["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10], ["B", 1]];
const TYPED = { "": 1, B: 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 };
const UNKNOWN = "–";

const isKnown = (value) => value !== null && value !== undefined;
const unitOf = (value) => UNITS.find(([, unit]) => value >= unit) ?? UNITS.at(-1);

function amount(value, [name, unit]) {
  const number = value / unit;
  if (number >= 100 || Number.isInteger(number)) return number.toFixed(0);
  return number.toFixed(number < 10 && unit >= 2 ** 30 ? 2 : 1);
}

export function bytes(value) {
  if (!isKnown(value)) return UNKNOWN;
  if (value < 0) return `−${bytes(-value)}`;
  const unit = unitOf(value);
  return `${amount(value, unit)} ${unit[0]}`;
}

/// From one size to another: 140–164 MiB.
export function range(low, high) {
  if (!isKnown(low) || !isKnown(high)) return "";
  const unit = unitOf(high);
  return `${amount(low, unit)}–${amount(high, unit)} ${unit[0]}`;
}

export function percent(value) {
  return isKnown(value) ? `${value.toFixed(0)} %` : UNKNOWN;
}

/// Bytes as they can be typed without loss: 512M, 1536K.
export function typedSize(value) {
  const unit = ["G", "M", "K"].find((unit) => value > 0 && value % TYPED[unit] === 0) ?? "";
  return `${value / TYPED[unit]}${unit}`;
}

/// What was typed as bytes; the host checks the rest.
export function parseSize(text) {
  const match = /^\s*(\d+)\s*([KMGT]?)(i?B)?\s*$/i.exec(text);
  if (!match) throw new Error(`'${text}' is not a size: write a number with K, M, G or T, as in 512M`);
  const value = Number(match[1]) * TYPED[match[2].toUpperCase()];
  if (!Number.isSafeInteger(value)) throw new Error(`'${text}' is more than any machine has`);
  return value;
}

export function duration(seconds) {
  const s = Math.floor(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

export function clock(ms) {
  return new Date(ms).toLocaleTimeString([], { hour12: false });
}
