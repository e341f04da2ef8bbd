// A model of a chart as an image that scales: what is saved from the page.

import { bytes } from "./format.js";
import { runs, sizeTicks, timeText, timeTicks } from "./models.js";

const WIDTH = 960;
const HEIGHT = 420;
const PLOT = { left: 84, right: 924, top: 74, bottom: 380 };
const RIBBON = 8;

/// `color` tells the color of a name.
export function svg(title, model, color) {
  const { times, scale } = model;
  const [from, to] = [times[0], times.at(-1)];
  const x = (time) => PLOT.left + ((PLOT.right - PLOT.left) * (time - from)) / Math.max(to - from, 1);
  const place = (value) => (scale.isLog ? Math.log2(value / scale.low) / Math.log2(scale.high / scale.low) : (value - scale.low) / (scale.high - scale.low));
  const y = (value) => PLOT.bottom - (PLOT.bottom - PLOT.top) * Math.min(1, Math.max(0, place(value)));
  const drawing = { model, color, x, y };
  const parts = [
    tag("rect", { width: WIDTH, height: HEIGHT, fill: color("panel") }),
    text(title, { x: PLOT.left, y: 28, "font-size": 18, "font-weight": 600, fill: color("text") }),
    ...legend(drawing),
    ...zones(drawing),
    ...model.series.flatMap((series) => shape(drawing, series)),
    ...ribbon(drawing),
    ...axes(drawing, from, to),
  ];
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="system-ui, sans-serif" font-size="12">\n${parts.join("\n")}\n</svg>\n`;
}

const escape = (value) => String(value).replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);

function tag(name, attributes, content) {
  const written = Object.entries(attributes).map(([key, value]) => ` ${key}="${escape(typeof value === "number" ? Math.round(value * 10) / 10 : value)}"`);
  return content === undefined ? `<${name}${written.join("")}/>` : `<${name}${written.join("")}>${content}</${name}>`;
}

const text = (content, attributes) => tag("text", attributes, escape(content));

function legend({ model, color }) {
  let at = PLOT.left;
  const named = [...model.series, ...(model.zones ?? [])];
  return named.flatMap(({ name, color: paint }) => {
    const here = at;
    at += 26 + name.length * 7.2;
    return [tag("rect", { x: here, y: 44, width: 11, height: 11, rx: 2, fill: color(paint) }), text(name, { x: here + 16, y: 54, fill: color("quiet") })];
  });
}

function zones({ model, color, y }) {
  return (model.zones ?? []).map(({ from, to, color: paint }) => tag("rect", { x: PLOT.left, y: y(to), width: PLOT.right - PLOT.left, height: y(from) - y(to), fill: color(paint), "fill-opacity": "0.14" }));
}

/// The pieces of a series between what is not known.
function shape(drawing, series) {
  const { model, color, x, y } = drawing;
  const paint = color(series.color);
  const pieces = runs(series.values.map((value) => value !== null)).filter(([isKnown]) => isKnown);
  return pieces.flatMap(([, first, end]) => {
    const points = (values) => values.slice(first, end).map((value, index) => `${x(model.times[first + index]).toFixed(1)},${y(value).toFixed(1)}`);
    const top = points(series.values);
    if (series.isArea) {
      const corners = [`${x(model.times[end - 1]).toFixed(1)},${PLOT.bottom}`, `${x(model.times[first]).toFixed(1)},${PLOT.bottom}`];
      return [tag("polygon", { points: [...top, ...corners].join(" "), fill: paint })];
    }
    const drawn = tag("polyline", { points: top.join(" "), fill: "none", stroke: paint, "stroke-width": series.width, ...(series.dash ? { "stroke-dasharray": series.dash.join(" ") } : {}) });
    if (series.downTo === undefined) return [drawn];
    const bottom = points(model.series[series.downTo].values).reverse();
    return [tag("polygon", { points: [...top, ...bottom].join(" "), fill: paint, "fill-opacity": "0.25" }), drawn];
  });
}

function ribbon({ model, color, x }) {
  return runs(model.ribbon ?? []).map(([name, first, end]) => {
    const [left, right] = [x(model.times[first]), x(model.times[Math.min(end, model.times.length - 1)])];
    return tag("rect", { x: left, y: PLOT.top, width: right - left, height: RIBBON, fill: color(name) });
  });
}

function axes({ model, color, x, y }, from, to) {
  const { step, ticks } = timeTicks(from, to, 9);
  const grid = { stroke: color("grid"), "stroke-width": 1 };
  return [
    ...sizeTicks(model.scale, 7).flatMap((size) => [
      tag("line", { x1: PLOT.left, x2: PLOT.right, y1: y(size), y2: y(size), ...grid }),
      text(bytes(size), { x: PLOT.left - 8, y: y(size) + 4, "text-anchor": "end", fill: color("quiet") }),
    ]),
    ...ticks.map((tick) => text(timeText(tick, step), { x: x(tick), y: PLOT.bottom + 20, "text-anchor": "middle", fill: color("quiet") })),
  ];
}
