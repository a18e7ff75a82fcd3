// Small charts of the last steps.

import { fitCanvas, theme, widthOf } from "./theme.js";

const MAX_STEPS = 240;
const MIN_STEPS = 60; // minimum width of a chart in steps, so that the first steps don't fill it
const HEIGHT = 46; // pixels

const percent = (value) => `${(100 * value).toFixed(0)} %`;
const duration = (seconds) => (seconds < 1 ? `${(1000 * seconds).toFixed(0)} ms` : `${seconds.toFixed(1)} s`);

/** Element id -> the value to draw for a column (null: none), and how to format the last value. */
const CHARTS = {
  throughput: { value: (c) => c.throughput, text: (v) => `${v.toFixed(0)} /s` },
  ttft: { value: (c) => c.ttft, text: duration, dots: true },
  itl: { value: (c) => c.itl, text: duration },
  hits: { value: (c) => c.hitRate, text: percent, top: 1 },
  waste: { value: (c) => c.waste, text: percent, top: 1 },
  running: { value: (c) => c.running, text: String, second: (c) => c.waiting },
};

export class Charts {
  /** Show the charts that only some models have: those with experts, and those with groups of layers. */
  begin(facts) {
    this.facts = facts;
    document.getElementById("experts").hidden = !facts.num_experts;
    document.getElementById("groups").hidden = (facts.windows ?? []).length < 2;
  }

  draw(digest, step) {
    const end = Math.max(step + 1 - digest.firstStep, 0);
    const columns = digest.columns.slice(Math.max(end - MAX_STEPS, 0), end);
    this.numSteps = Math.max(columns.length, MIN_STEPS);
    for (const [id, chart] of Object.entries(CHARTS)) this.drawChart(id, chart, columns);
    this.drawBlocks(columns);
    if (this.facts.num_experts) this.drawExperts(columns);
    if ((this.facts.windows ?? []).length > 1) this.drawGroups(columns);
  }

  /** Draw how many experts of a layer a step has used, on the mean of all layers. */
  drawExperts(columns) {
    const count = this.facts.num_experts;
    const text = (value) => `${value.toFixed(1)} of ${count}`;
    this.drawChart("experts", { value: (c) => c.experts, text, top: count }, columns);
  }

  /** Draw the blocks in use by each group of layers, a line for each: groups without a window darker. */
  drawGroups(columns) {
    const { context, width } = this.prepare("groups");
    const last = columns.at(-1)?.groups ?? [];
    document.getElementById("groups-value").textContent = last.join(" + ") || "–";
    const top = Math.max(...columns.flatMap((column) => column.groups), 1) * 1.1;
    this.facts.windows.forEach((window, group) => {
      const values = columns.map((column) => column.groups[group] ?? null);
      this.line(context, values, top, width, window === null ? theme.ink : theme.accent);
    });
  }

  drawChart(id, chart, columns) {
    const values = columns.map(chart.value);
    const last = values.findLast((value) => value !== null);
    document.getElementById(`${id}-value`).textContent = last === undefined ? "–" : this.text(chart, last, columns);
    const { context, width } = this.prepare(id);
    const others = chart.second ? columns.map(chart.second) : [];
    const top = chart.top ?? Math.max(...values.filter((value) => value !== null), ...others, 1e-9) * 1.1;
    if (chart.second) this.line(context, others, top, width, theme.muted);
    if (chart.dots) this.dots(context, values, top, width);
    else this.line(context, values, top, width, theme.accent);
  }

  text(chart, last, columns) {
    const text = chart.text(last);
    return chart.second ? `${text} + ${chart.second(columns.at(-1))}` : text;
  }

  prepare(id) {
    const canvas = document.getElementById(`${id}-chart`);
    const width = widthOf(canvas.parentElement);
    fitCanvas(canvas, width, HEIGHT);
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, HEIGHT);
    context.fillStyle = theme.line;
    context.fillRect(0, HEIGHT - 1, width, 1);
    return { context, width };
  }

  x(index, count, width) { return width - (count - index - 0.5) * (width / this.numSteps); }

  line(context, values, top, width, color) {
    context.strokeStyle = color;
    context.lineWidth = 1.5;
    context.beginPath();
    values.forEach((value, index) => {
      if (value !== null) context.lineTo(this.x(index, values.length, width), this.y(value, top));
    });
    context.stroke();
  }

  dots(context, values, top, width) {
    context.fillStyle = theme.accent;
    values.forEach((value, index) => {
      if (value === null) return;
      context.beginPath();
      context.arc(this.x(index, values.length, width), this.y(value, top), 2.2, 0, 7);
      context.fill();
    });
  }

  y(value, top) { return HEIGHT - 2 - (HEIGHT - 6) * Math.min(value / top, 1); }

  /** Draw the number of blocks in each state, stacked. */
  drawBlocks(columns) {
    const { context, width } = this.prepare("blocks");
    const last = columns.at(-1);
    const held = last ? last.referenced + last.shared : 0;
    document.getElementById("blocks-value").textContent = last ? `${held} + ${last.cached}` : "–";
    const step = width / this.numSteps;
    columns.forEach((column, index) => {
      const total = column.free + column.cached + column.referenced + column.shared;
      let y = HEIGHT - 1;
      for (const [kind, color] of [["shared", theme.ink], ["referenced", theme.accent], ["cached", theme.cached]]) {
        const height = (column[kind] / total) * (HEIGHT - 4);
        context.fillStyle = color;
        context.fillRect(this.x(index, columns.length, width) - step / 2, y - height, step + 0.5, height);
        y -= height;
      }
    });
  }
}
