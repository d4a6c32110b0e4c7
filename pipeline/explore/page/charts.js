// Histograms. Two handles below set the range shown; flags above are thresholds of select stages.

import { $, count, draw, make, short } from "./make.js";
import { aboutColumn, change, column, filterBy, root, view } from "./view.js";

const WIDE = 300, HIGH = 84;
const SIGNS = { ">=": "≥", "<=": "≤", "<>": "≠" };
const STEPS = 200; // of a handle from end to end, by the keyboard
const charts = new Map();

export function showCharts(answer) {
  for (const [id, chart] of charts) {
    if (!view.charts.includes(id)) {
      chart.box.remove();
      charts.delete(id);
    }
  }
  for (const id of view.charts) {
    if (!charts.has(id)) charts.set(id, new Chart(id));
    charts.get(id).show(answer.histograms[id]);
  }
  const boxes = view.charts.map((id) => charts.get(id).box);
  if (boxes.some((box, index) => $("charts").children[index] !== box)) $("charts").replaceChildren(...boxes);
}

export function forgetCharts() {
  charts.clear();
  $("charts").replaceChildren();
}

class Chart {
  constructor(id) {
    this.id = id;
    this.plot = draw("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none", role: "img" });
    this.area = make("div", { className: "area" }, this.plot);
    this.low = this.handle("low", (value) => this.bound(value, undefined));
    this.high = this.handle("high", (value) => this.bound(undefined, value));
    this.flags = root().thresholds
      .filter((each) => each.column === id && !each.is_size && each.value !== null)
      .map((each) => this.flag(each));
    this.said = make("span", { className: "soft" });
    const close = make("button", {
      className: "quiet", "aria-label": `Close the chart of ${id}`,
      onclick: () => change({
        charts: view.charts.filter((each) => each !== id),
        filters: view.filters.filter((each) => !aboutColumn(id, "range")(each)),
      }),
    }, "×");
    const title = make("b", { title: column(id).doc }, id);
    this.box = make("div", { className: "chart" }, make("p", {}, title, close), this.area, make("p", { className: "ends" }, this.said));
  }

  show(histogram) {
    this.edges = histogram.edges;
    this.span = histogram.span;
    const bins = this.edges.length - 1;
    const most = Math.max(1, ...histogram.all.slice(0, bins));
    const bars = [];
    for (const [kind, counts] of [["every", histogram.all], ["left", histogram.left]]) {
      for (let bin = 0; bin < bins; bin += 1) {
        const high = counts[bin] ? Math.max(1.5, (HIGH * counts[bin]) / most) : 0;
        bars.push(draw("rect", { class: kind, x: (WIDE * bin) / bins, width: WIDE / bins - 0.6, y: HIGH - high, height: high }));
      }
    }
    this.plot.replaceChildren(...bars);
    this.plot.setAttribute("aria-label", `histogram of ${this.id}`);
    const range = view.filters.find(aboutColumn(this.id, "range"));
    const [first, last] = this.ends();
    this.place(this.low, range?.low ?? first);
    this.place(this.high, range?.high ?? last);
    for (const flag of this.flags) {
      const tried = view.threshold;
      const isTried = tried && tried.stage === flag.of.stage && tried.text === flag.of.text;
      flag.classList.toggle("tried", Boolean(isTried));
      this.place(flag, isTried ? tried.value : flag.of.value);
    }
    const none = histogram.left[bins];
    const bounds = range ? `${range.low === null ? "" : `${short(range.low)} ≤ `}value${range.high === null ? "" : ` ≤ ${short(range.high)}`}` : this.reach(first, last);
    this.said.textContent = `${bounds}${none ? `; ${count(none)} without a value` : ""}`;
  }

  // The outer bars include values beyond the axis.
  reach(first, last) {
    const [least, most] = this.span;
    const beyond = [least < this.edges[0] ? `from ${short(least)}` : "", most > this.edges.at(-1) ? `up to ${short(most)}` : ""];
    const said = beyond.filter(Boolean).join(" and ");
    return `${short(first)} to ${short(last)}${said ? `, a few ${said}` : ""}`;
  }

  ends() {
    const [first, last] = [Math.max(this.edges[0], this.span[0]), Math.min(this.edges.at(-1), this.span[1])];
    return this.isWhole() ? [Math.ceil(first), Math.floor(last)] : [first, last];
  }

  isWhole() {
    return column(this.id).type.includes("int");
  }

  place(handle, value) {
    const [first, last] = [this.edges[0], this.edges.at(-1)];
    const part = Math.min(1, Math.max(0, (value - first) / (last - first || 1)));
    handle.value = value;
    handle.style.left = `${100 * part}%`;
    handle.setAttribute("aria-valuemin", first);
    handle.setAttribute("aria-valuemax", last);
    handle.setAttribute("aria-valuenow", value);
    handle.setAttribute("aria-valuetext", short(value));
    if (handle.of) handle.firstChild.textContent = `${SIGNS[handle.of.sign] ?? handle.of.sign} ${short(value)}`;
  }

  // Returns null for a handle at its end: no bound.
  bound(low, high) {
    const [first, last] = this.ends();
    const range = view.filters.find(aboutColumn(this.id, "range")) ?? { low: null, high: null };
    if (low !== undefined) range.low = low <= first ? null : Math.min(low, range.high ?? last);
    if (high !== undefined) range.high = high >= last ? null : Math.max(high, range.low ?? first);
    const isOpen = range.low === null && range.high === null;
    filterBy(aboutColumn(this.id, "range"), isOpen ? null : { is: "range", column: this.id, low: range.low, high: range.high });
  }

  flag(threshold) {
    const flag = this.handle("flag", (value) => change({ threshold: tried(threshold, value), variant: null }), `${threshold.stage}: ${threshold.text}`);
    flag.of = threshold;
    flag.title = `'${threshold.stage}' keeps ${threshold.text}: drag to try another`;
    flag.append(make("span"));
    return flag;
  }

  handle(kind, moved, name = `${this.id}, ${kind}est shown`) {
    const handle = make("div", { className: `handle ${kind}`, role: "slider", tabIndex: 0, "aria-label": name });
    const to = (value) => moved(this.isWhole() ? Math.round(value) : Number(value.toPrecision(4)));
    handle.addEventListener("pointerdown", (event) => {
      handle.setPointerCapture(event.pointerId);
      handle.focus();
      event.preventDefault();
    });
    handle.addEventListener("pointermove", (event) => {
      if (!handle.hasPointerCapture(event.pointerId)) return;
      const box = this.area.getBoundingClientRect();
      const part = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      to(this.edges[0] + part * (this.edges.at(-1) - this.edges[0]));
    });
    handle.addEventListener("keydown", (event) => {
      const [first, last] = this.ends();
      const step = this.isWhole() ? Math.max(1, Math.round((last - first) / STEPS)) : (last - first) / STEPS;
      const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[event.key];
      const at = { Home: first, End: last }[event.key] ?? (by ? handle.value + by * step : null);
      if (at === null) return;
      event.preventDefault();
      to(Math.min(last, Math.max(first, at)));
    });
    this.area.append(handle);
    return handle;
  }
}

export const tried = ({ stage, name, text }, value) => ({ stage, name, text, value });
