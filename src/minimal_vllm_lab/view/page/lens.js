// One token under a lens: its queries, the blocks that it reads, and the tokens that may come next.
// The engine computes the token again when the lens asks, and only then.

import { make, setChildren } from "./elements.js";
import { get } from "./feed.js";
import { colorOf, fitCanvas, theme, widthOf } from "./theme.js";

const SLIDERS = ["layer", "head", "temperature", "top_k", "top_p"];
const ROW = 7; // height of a head's row of the queries, in pixels

const $ = (id) => document.getElementById(`lens-${id}`);
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const visible = (text) => text.replaceAll("\n", "↵").replaceAll(" ", "·");

export class Lens {
  /** @param texts map from token ids to texts; onChange: called when something else is shown */
  constructor(player, texts, { onChange }) {
    this.player = player;
    this.texts = texts;
    this.onChange = onChange;
    this.close();
    $("close").addEventListener("click", () => this.close());
    $("previous").addEventListener("click", () => this.move(-1));
    $("next").addEventListener("click", () => this.move(1));
    for (const name of SLIDERS) $(name).addEventListener("input", () => this.choose(name));
    $("text").addEventListener("click", ({ target }) => {
      if (target.dataset.place) this.moveTo(Number(target.dataset.place));
    });
  }

  get isOn() { return this.arrival !== null; }

  /** Look at a token of a request. The engine is paused. @param position null: always the newest one */
  async follow(arrival, position) {
    if (!this.player.isLive) throw new Error("A recorded trace has no model that could be asked about a token.");
    if (arrival === null) throw new Error("Select a request first, whose newest token you want to follow.");
    if (arrival !== this.arrival) this.chosen = {};
    Object.assign(this, { arrival, position, asked: null, error: "" });
    if (!this.player.paused) await this.player.pause();
    this.player.goLive();
    this.onChange();
  }

  close() {
    Object.assign(this, { arrival: null, position: null, report: null, asked: null, error: "", chosen: {}, light: null });
    this.onChange();
  }

  move(by) {
    if (this.report) this.moveTo(this.report.position + by);
  }

  moveTo(position) {
    const request = this.player.state.byArrival(this.arrival);
    if (!request || position < 0) return;
    this.position = position >= request.computed - 1 ? null : position;
    this.onChange();
  }

  /** Take over a slider that the user has moved. */
  choose(name) {
    this.chosen[name] = Number($(name).value);
    this.onChange();
  }

  // ---- asking the engine ----------------------------------------------------------------------

  /** Ask the engine, unless it has been asked this already. */
  async ask(state) {
    const request = state.byArrival(this.arrival);
    const { layer = 1, head = 0, ...sampling } = this.chosen;
    const query = { request_id: request.id, layer: layer - 1, ...sampling };
    if (head) query.head = head - 1;
    if (this.position !== null) query.position = this.position;
    const asked = `${state.step} ${new URLSearchParams(query)}`;
    if (asked === this.asked) return;
    this.asked = asked;
    try {
      const report = await get(`/view/token?${new URLSearchParams(query)}`);
      if (asked === this.asked) this.show(report, state);
    } catch (error) {
      if (asked === this.asked) Object.assign(this, { report: null, light: null, error: error.message });
    }
    this.onChange();
  }

  show(report, state) {
    Object.assign(this, { report, error: "", light: this.lightOf(report, state) });
  }

  /** Return for each block that the token reads how bright its slots are, from 0 to 1. */
  lightOf({ weights }, state) {
    const request = state.byArrival(this.arrival);
    const size = state.facts.block_size;
    const most = Math.max(...weights);
    const light = new Map();
    for (let index = 0; index * size < weights.length; index += 1) {
      const slots = weights.slice(index * size, (index + 1) * size).map((weight) => Math.sqrt(weight / most));
      for (const [block] of state.row(request, index)) light.set(block, slots);
    }
    return light;
  }

  // ---- drawing --------------------------------------------------------------------------------

  /** Draw the lens, and ask the engine for what it has not said yet. */
  draw(state) {
    $("panel").hidden = !this.isOn;
    if (!this.isOn) return;
    const hint = this.whyNothing(state);
    if (hint) this.light = null;
    else this.ask(state);
    const report = hint || this.error ? null : this.report;
    $("hint").textContent = hint || this.error;
    $("hint").hidden = report !== null;
    $("body").hidden = report === null;
    if (report) this.drawReport(state, report);
  }

  whyNothing(state) {
    if (!this.player.follows) return "You look at the past. Only the present has keys and values: press “Now”.";
    if (!this.player.paused) return "The engine runs. Pause it to look at a token.";
    const request = state.byArrival(this.arrival);
    if (request?.status === "running") return "";
    return `#${this.arrival} ${request?.status === "waiting" ? "waits, and has" : "has ended. It has"} no blocks that a token could read.`;
  }

  drawReport(state, report) {
    const request = state.byArrival(this.arrival);
    const { position, weights, num_layers, num_heads } = report;
    const name = this.texts.get(report.token_id) ?? `[${report.token_id}]`;
    const numBlocks = Math.ceil(weights.length / state.facts.block_size);
    $("name").textContent = `“${visible(name)}”`;
    $("story").textContent = `Token ${position} of #${this.arrival} reads ${weights.length} tokens in `
      + `${numBlocks} block${numBlocks === 1 ? "" : "s"}. Bright ones get much of its attention.`;
    Object.assign($("layer"), { max: num_layers });
    Object.assign($("head"), { max: num_heads });
    const { layer = 1, head = 0 } = this.chosen;
    this.drawSliders({ layer, head, temperature: report.temperature, top_k: Math.max(report.top_k, 0), top_p: report.top_p });
    this.drawText(request, weights);
    this.drawQueries(report, head);
    this.drawCandidates(report);
  }

  drawSliders(values) {
    const words = { head: (each) => each || "all", top_k: (each) => each || "off" };
    for (const name of SLIDERS) {
      const slider = $(name);
      if (document.activeElement !== slider) slider.value = values[name];
      $(`${name}-value`).textContent = words[name]?.(values[name]) ?? values[name];
    }
  }

  /** The text up to the token, each token as bright as the attention that it gets. */
  drawText(request, weights) {
    const most = Math.max(...weights);
    const color = colorOf(request.arrival);
    setChildren($("text"), weights.map((weight, place) => {
      const share = Math.round(100 * Math.sqrt(weight / most));
      const token = make("span", place === weights.length - 1 ? "seen reader" : "seen", this.textAt(request, place));
      token.dataset.place = place;
      token.title = `${percent(weight)} of the attention`;
      token.style.background = `color-mix(in oklch, ${color} ${share}%, transparent)`;
      return token;
    }));
  }

  textAt(request, place) {
    return (this.texts.get(request.tokens[place]) ?? "").replaceAll("\n", "↵");
  }

  /** A row for each head, a column for each number of its query: positive ones blue, negative ones red. */
  drawQueries({ queries }, head) {
    const canvas = $("queries");
    const width = widthOf(canvas.parentElement);
    fitCanvas(canvas, width, ROW * queries.length);
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, ROW * queries.length);
    const most = Math.max(...queries.flat().map(Math.abs), 1e-9);
    queries.forEach((query, row) => query.forEach((number, column) => {
      context.fillStyle = number > 0 ? theme.accent : theme.alarm;
      context.globalAlpha = Math.abs(number / most) * (head && head - 1 !== row ? 0.25 : 1);
      context.fillRect((column * width) / query.length, row * ROW, width / query.length, ROW - 2);
    }));
    context.globalAlpha = 1;
  }

  drawCandidates({ candidates, chosen }) {
    setChildren($("candidates"), candidates.map((each) => {
      const row = make("li", each.after > 0 ? "" : "excluded", make("span", "text", visible(each.text)));
      for (const kind of ["before", "after"]) {
        const bar = make("span", `bar ${kind}`);
        bar.style.setProperty("--share", each[kind]);
        row.append(bar, make("span", "number", percent(each[kind])));
      }
      if (each.token_id === chosen) row.append(make("span", "hint", "← came"));
      return row;
    }));
  }
}
