// Charts of a history that is looked at again and again, and what can be saved of them.

import { get } from "./api.js";
import { element } from "./dom.js";
import { bytes } from "./format.js";
import { runs, sizeTicks, timeText, timeTicks } from "./models.js";
import { svg } from "./svg.js";

const SPANS = { "10m": "10 minutes", "1d": "1 day" };
const REFRESH_MS = { "10m": 2000, "1d": 30_000 };
const HEIGHT = 250;
const RIBBON = 6;
/// A host that has just started shows its first points small, not stretched.
const SHORTEST_S = 60;

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function button(text, label, act) {
  const made = element("button", text, { type: "button", "aria-label": label });
  made.addEventListener("click", act);
  return made;
}

function save(blob, name) {
  const link = element("a", undefined, { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/// The history at a path, as it is now, and the charts that show it.
export class History {
  constructor(path, charts, tools) {
    Object.assign(this, { path, charts, tools, span: "10m", loaded: 0 });
    tools.replaceChildren(...Object.entries(SPANS).map(([span, text]) => this.spanButton(span, text)));
  }

  spanButton(span, text) {
    const made = button(text, `Show ${text}`, () => {
      this.span = span;
      [...this.tools.children].forEach((other) => other.setAttribute("aria-pressed", other === made));
      this.refresh(true);
    });
    made.setAttribute("aria-pressed", span === this.span);
    return made;
  }

  remove() {
    this.isRemoved = true;
    this.charts.forEach((chart) => chart.remove());
  }

  /// Looks for news, if it is time.
  async refresh(now = false) {
    if (!now && (document.hidden || Date.now() - this.loaded < REFRESH_MS[this.span])) return;
    this.loaded = Date.now();
    const { span } = this;
    try {
      const history = await get(`${this.path}${this.path.includes("?") ? "&" : "?"}span=${span}`);
      const isWanted = !this.isRemoved && span === this.span && history.time_ms.length > 0;
      if (isWanted) this.charts.forEach((chart) => chart.show(history));
    } catch (error) {
      console.debug("history:", error);
    }
  }
}

export class Chart {
  /// `model` makes what is shown of a history.
  constructor(id, name, model) {
    Object.assign(this, { place: document.getElementById(id), name, makeModel: model, history: null, plot: null });
    const tools = document.getElementById(`${id}-tools`);
    const kinds = { SVG: () => this.saveSvg(), PNG: () => this.savePng(), CSV: () => this.saveCsv() };
    tools.replaceChildren(...Object.entries(kinds).map(([kind, act]) => button(kind, `Save ${name} as ${kind}`, act)));
    this.place.setAttribute("role", "img");
    this.observer = new ResizeObserver(() => this.plot?.setSize(this.size()));
    this.observer.observe(this.place);
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.redraw = () => this.history && this.show(this.history);
    this.dark.addEventListener("change", this.redraw);
  }

  remove() {
    this.observer.disconnect();
    this.dark.removeEventListener("change", this.redraw);
    this.plot?.destroy();
    this.place.replaceChildren();
  }

  size() {
    return { width: Math.max(240, this.place.clientWidth), height: HEIGHT };
  }

  show(history) {
    this.history = history;
    this.model = this.makeModel(history);
    this.describe();
    const data = [this.model.times, ...this.model.series.map((series) => series.values)];
    const look = [color("text"), ...this.model.series.map((series) => series.name)].join();
    if (this.plot && this.look === look) return this.plot.setData(data);
    this.plot?.destroy();
    this.look = look;
    this.plot = new uPlot(this.options(), data, this.place);
  }

  /// For who does not see it.
  describe() {
    const now = this.model.series.map(({ name, own }) => `${name} ${bytes(own.at(-1))}`);
    this.place.setAttribute("aria-label", `${this.name}. Now: ${now.join(", ")}.`);
  }

  options() {
    const axis = { stroke: color("quiet"), font: "12px system-ui, sans-serif", ticks: { show: false } };
    const grid = { stroke: color("grid"), width: 1 };
    const { scale, series } = this.model;
    const most = () => Math.max(3, Math.floor(this.size().width / 90));
    const times = (from, to) => timeTicks(from, to, most());
    return {
      ...this.size(),
      scales: {
        x: { range: (plot, from, to) => [Math.min(from, to - SHORTEST_S), to] },
        y: { distr: scale.isLog ? 3 : 1, log: 2, range: () => [this.model.scale.low, this.model.scale.high] },
      },
      axes: [
        { ...axis, size: 28, grid: { show: false }, splits: (plot, at, from, to) => times(from, to).ticks, values: (plot, ticks) => ticks.map((tick) => timeText(tick, times(plot.scales.x.min, plot.scales.x.max).step)) },
        { ...axis, size: 70, grid, splits: () => sizeTicks(this.model.scale, 6), filter: (plot, ticks) => ticks, values: (plot, ticks) => ticks.map((tick) => bytes(tick)) },
      ],
      series: [{ label: "at", value: (plot, time) => (time === null ? "now" : timeText(time, 1)) }, ...series.map((_, index) => this.seriesOptions(index))],
      bands: series.flatMap(({ downTo, color: paint }, index) => (downTo === undefined ? [] : [{ series: [index + 1, downTo + 1], fill: `${color(paint)}40` }])),
      cursor: { drag: { x: false, y: false }, points: { show: false } },
      drawOrder: ["series", "axes"],
      hooks: { drawClear: [(plot) => this.drawZones(plot)], draw: [(plot) => this.drawRibbon(plot)] },
    };
  }

  seriesOptions(index) {
    const { name, color: paint, isArea, width, dash } = this.model.series[index];
    const ink = color(paint);
    // Where nothing is pointed at, the legend tells what is now.
    const value = (plot, placed, series, at) => bytes(this.model.series[index].own.at(at ?? -1));
    const look = isArea ? { fill: ink, stroke: ink, width: 0 } : { stroke: ink, width, dash };
    return { label: name, points: { show: false }, value, ...look };
  }

  /// Where each state of memory begins, behind all.
  drawZones(plot) {
    const { ctx: ink, bbox } = plot;
    ink.save();
    ink.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    ink.textAlign = "right";
    ink.textBaseline = "top";
    for (const { name, color: paint, from, to } of this.model.zones ?? []) {
      const [top, bottom] = [plot.valToPos(to, "y", true), plot.valToPos(from, "y", true)];
      ink.fillStyle = color(paint);
      ink.globalAlpha = 0.16;
      ink.fillRect(bbox.left, top, bbox.width, bottom - top);
      ink.globalAlpha = 1;
      ink.fillStyle = color("quiet");
      ink.fillText(name, bbox.left + bbox.width - 6 * devicePixelRatio, top + (top === bbox.top ? 2 * RIBBON : 3) * devicePixelRatio);
    }
    ink.restore();
  }

  /// In which state memory was, along the upper edge.
  drawRibbon(plot) {
    const { times, ribbon } = this.model;
    const x = (index) => plot.valToPos(times[Math.min(index, times.length - 1)], "x", true);
    for (const [name, first, end] of runs(ribbon ?? [])) {
      plot.ctx.fillStyle = color(name);
      plot.ctx.fillRect(x(first), plot.bbox.top, x(end) - x(first), RIBBON * devicePixelRatio);
    }
  }

  fileName(kind) {
    return `ballonet-${this.name.toLowerCase().replaceAll(/[^a-z0-9.]+/g, "-")}-${this.history.span}.${kind}`;
  }

  svg() {
    return svg(this.name, this.model, color);
  }

  saveSvg() {
    if (this.history) save(new Blob([this.svg()], { type: "image/svg+xml" }), this.fileName("svg"));
  }

  savePng() {
    if (!this.history) return;
    const drawn = new Image();
    drawn.onload = () => {
      const paper = Object.assign(document.createElement("canvas"), { width: 1920, height: 840 });
      paper.getContext("2d").drawImage(drawn, 0, 0, paper.width, paper.height);
      paper.toBlob((blob) => save(blob, this.fileName("png")));
    };
    drawn.src = `data:image/svg+xml,${encodeURIComponent(this.svg())}`;
  }

  saveCsv() {
    if (!this.history) return;
    const { time_ms: times, columns } = this.history;
    const header = ["time", ...columns.map(({ name }) => (name === "state" ? name : `${name}_bytes`))];
    const rows = times.map((ms, index) => [new Date(ms).toISOString(), ...columns.map(({ values }) => values[index])]);
    save(new Blob([header, ...rows].map((row) => `${row.join(",")}\r\n`), { type: "text/csv" }), this.fileName("csv"));
  }
}
