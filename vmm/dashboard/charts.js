// A chart of stacked memory over time, with its buttons: span, and saving as an image or a table.

import { get } from "./api.js";
import { bytes } from "./format.js";

const REFRESH_MS = { "10m": 2000, "1d": 30_000 };
const HEIGHT = 280;

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

export class Chart {
  /// `stack` and `lines` name columns of the history at `path`, from the bottom up.
  constructor(place, tools, { path, name, stack, lines }) {
    Object.assign(this, { place, path, name, stack, lines, span: "10m", loaded: 0, history: null, plot: null });
    this.addTools(tools);
    this.observer = new ResizeObserver(() => this.plot?.setSize(this.size()));
    this.observer.observe(place);
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.redraw = () => this.draw();
    this.dark.addEventListener("change", this.redraw);
    this.refresh(true);
  }

  remove(tools) {
    this.isRemoved = true;
    this.observer.disconnect();
    this.dark.removeEventListener("change", this.redraw);
    this.plot?.destroy();
    this.place.replaceChildren();
    tools.replaceChildren();
  }

  addTools(tools) {
    const button = (text, act) => {
      const made = document.createElement("button");
      made.type = "button";
      made.textContent = text;
      made.addEventListener("click", act);
      tools.append(made);
      return made;
    };
    const spans = Object.entries({ "10m": "10 minutes", "1d": "1 day" }).map(([span, text]) => {
      const made = button(text, () => {
        this.span = span;
        spans.forEach((other) => other.setAttribute("aria-pressed", other === made));
        this.refresh(true);
      });
      made.setAttribute("aria-pressed", span === this.span);
      return made;
    });
    button("Save PNG", () => this.savePng());
    button("Save CSV", () => this.saveCsv());
  }

  /// Looks for news, if it is time.
  async refresh(now = false) {
    if (!now && (document.hidden || Date.now() - this.loaded < REFRESH_MS[this.span])) return;
    this.loaded = Date.now();
    const mark = this.path.includes("?") ? "&" : "?";
    try {
      const history = await get(`${this.path}${mark}span=${this.span}`);
      if (this.isRemoved) return;
      this.history = history;
      this.draw();
    } catch (error) {
      console.debug("history:", error);
    }
  }

  column(name) {
    return this.history.columns.find((column) => column.name === name)?.values ?? [];
  }

  size() {
    return { width: Math.max(280, this.place.clientWidth), height: HEIGHT };
  }

  /// Sums from the bottom, so that each series is drawn behind those below it.
  data() {
    const times = this.history.time_ms.map((ms) => ms / 1000);
    const sum = times.map(() => 0);
    const stacked = this.stack.map((name) => {
      this.column(name).forEach((value, index) => (sum[index] += value));
      return [...sum];
    });
    return [times, ...stacked.reverse(), ...this.lines.map((name) => this.column(name))];
  }

  draw() {
    if (!this.history || this.isRemoved) return;
    const data = this.data();
    const look = [color("text"), color("panel")].join();
    if (this.plot && this.look === look) {
      this.plot.setData(data);
      return;
    }
    this.plot?.destroy();
    this.look = look;
    this.plot = new uPlot(this.options(), data, this.place);
  }

  options() {
    const axis = { stroke: color("quiet"), grid: { stroke: color("line"), width: 1 }, ticks: { stroke: color("line") } };
    // Where nothing is pointed at, the legend tells what is now.
    const own = (name) => (plot, value, series, index) => bytes(this.column(name).at(index ?? -1));
    const time = (s) => new Date(s * 1000).toLocaleTimeString([], { hour12: false });
    const areas = [...this.stack].reverse().map((name) => ({ label: name, fill: color(name), stroke: color(name), width: 0, points: { show: false }, value: own(name) }));
    const lines = this.lines.map((name) => ({ label: name, stroke: color("target"), width: 2, dash: [6, 4], points: { show: false }, value: own(name) }));
    const step = 2 ** 20;
    return {
      ...this.size(),
      scales: { y: { range: (plot, low, high) => [0, Math.max(high, step) * 1.03] } },
      axes: [{ ...axis, space: 80, values: (plot, ticks) => ticks.map(time) }, { ...axis, size: 74, values: (plot, ticks) => ticks.map((tick) => bytes(tick)), incrs: Array.from({ length: 24 }, (_, index) => step * 2 ** index) }],
      series: [{ label: "time", value: (plot, value) => (value === null ? "now" : time(value)) }, ...areas, ...lines],
      cursor: { drag: { x: false, y: false } },
    };
  }

  savePng() {
    if (!this.plot) return;
    const from = this.plot.ctx.canvas;
    const scale = devicePixelRatio;
    const room = 56 * scale;
    const image = Object.assign(document.createElement("canvas"), { width: from.width, height: from.height + room });
    const ink = image.getContext("2d");
    ink.fillStyle = color("panel");
    ink.fillRect(0, 0, image.width, image.height);
    ink.fillStyle = color("text");
    ink.font = `${15 * scale}px system-ui, sans-serif`;
    ink.fillText(this.name, 10 * scale, 20 * scale);
    ink.font = `${12 * scale}px system-ui, sans-serif`;
    let at = 10 * scale;
    for (const name of [...this.stack, ...this.lines]) {
      ink.fillStyle = color(this.lines.includes(name) ? "target" : name);
      ink.fillRect(at, 32 * scale, 10 * scale, 10 * scale);
      ink.fillStyle = color("text");
      ink.fillText(name, at + 14 * scale, 42 * scale);
      at += ink.measureText(name).width + 30 * scale;
    }
    ink.drawImage(from, 0, room);
    image.toBlob((blob) => this.save(blob, "png"));
  }

  saveCsv() {
    if (!this.history) return;
    const { time_ms: times, columns } = this.history;
    const rows = [["time", ...columns.map((column) => `${column.name}_bytes`)], ...times.map((ms, index) => [new Date(ms).toISOString(), ...columns.map((column) => column.values[index])])];
    this.save(new Blob([rows.map((row) => row.join(",")).join("\r\n"), "\r\n"], { type: "text/csv" }), "csv");
  }

  save(blob, kind) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `ballonet-${this.name.toLowerCase().replaceAll(/[^a-z0-9.]+/g, "-")}-${this.span}.${kind}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}
