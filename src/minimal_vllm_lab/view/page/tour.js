// The tour: eight stops, from an empty pool to the end of all requests, with the engine paused at each.

import { make } from "./elements.js";
import { post } from "./feed.js";
import { CACHED, FREE } from "./state.js";
import { STOPS } from "./stops.js";

const STEP_MS = 50; // time from step to step on the way to a stop
const POLL_MS = 10;
const MAX_BLOCKS = 64; // a larger pool takes too long to fill
const CROWD = 6; // number of requests that fill the pool
const MAX_TOKENS = 128; // of one of them, prompt included
const MIN_MODEL_LEN = 80; // for the first prompt and its text

const $ = (id) => document.getElementById(id);
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export class Tour {
  /**
   * @param texts map from token ids to texts
   * @param onChange called when panels appear or disappear
   * @param onError called with an error's message
   */
  constructor(player, texts, { onChange, onError }) {
    this.player = player;
    this.texts = texts;
    this.onChange = onChange;
    this.onError = onError;
    this.isOn = this.isRunning = false;
    this.numResets = 0; // number of times that the engine was emptied
    this.isOffered = null; // what the server said last; null: nothing yet
    $("tour-next").addEventListener("click", () => this.next());
    $("tour-back").addEventListener("click", () => this.back());
    $("tour-skip").addEventListener("click", () => this.leave());
  }

  /** Whether the requests of the tour would fill the pool, and share and evict blocks. */
  static suits(facts) {
    const { num_blocks, block_size, max_model_len, max_num_seqs, enable_prefix_caching } = facts;
    const wanted = CROWD * Math.floor(Math.min(MAX_TOKENS, max_model_len) / block_size);
    return enable_prefix_caching && num_blocks <= MAX_BLOCKS && max_num_seqs >= CROWD
      && max_model_len >= MIN_MODEL_LEN && wanted > num_blocks;
  }

  /** Begin or leave, as the server says. A page takes a tour over that another page has not ended. */
  takeOffer(touring, facts) {
    if (this.isOn && !touring && !this.isStarting) this.close();
    if (!this.isOn && touring && this.isOffered === null) {
      if (Tour.suits(facts)) this.begin();
      else this.tellServer(false);
    }
    this.isOffered = touring;
  }

  /** Leave if another page has emptied the engine for a tour of its own. */
  takeReset() {
    this.numResets += 1;
    if (this.isOn && !this.isStarting) this.close();
  }

  async begin() {
    if (this.isOn) return;
    this.isOn = this.isStarting = true;
    this.requests = []; // ids of the tour's requests, in order
    this.controller = new AbortController(); // ends them when the tour is left
    this.positions = []; // of the stops that were reached
    this.preempted = new Set(); // arrival numbers, in the order of the first preemption
    this.isRunning = this.hurries = false;
    const { numResets } = this;
    if (!(await this.tellServer(true))) return this.close();
    await this.until(() => this.numResets > numResets); // the feed may be slower than the answer
    this.isStarting = false;
    this.player.goLive();
    await this.goTo(0);
  }

  leave() {
    this.close();
    return this.tellServer(false);
  }

  /** Show the full layout. */
  close() {
    this.isOn = false;
    this.controller.abort();
    $("tour").hidden = true;
    delete document.body.dataset.tour;
    this.player.goLive();
    this.onChange();
  }

  async tellServer(touring) {
    try {
      await post("/view/tour", { touring });
      return true;
    } catch (error) {
      this.onError(error.message);
      return false;
    }
  }

  // ---- the viewer's commands ------------------------------------------------------------------

  /** Handle a key. Return whether it was one of the tour's. */
  onKey(key) {
    const commands = { ArrowRight: () => this.next(), ArrowLeft: () => this.back(), Escape: () => this.leave() };
    commands[key]?.();
    return key in commands;
  }

  next() {
    this.hurries = this.isRunning;
    if (this.isRunning || this.isStarting) return undefined;
    return this.stop + 1 < STOPS.length ? this.goTo(this.stop + 1) : this.leave();
  }

  back() {
    return this.isRunning || !this.stop ? undefined : this.goTo(this.stop - 1);
  }

  /** Go to a stop: run the engine there, or look back if it was reached before. */
  async goTo(stop) {
    this.stop = stop;
    const { panels, go } = STOPS[stop];
    document.body.dataset.tour = panels;
    this.onChange();
    if (stop in this.positions) this.player.moveTo(this.positions[stop]);
    else await this.travel(go);
    if (!this.isOn) return;
    this.positions[stop] ??= this.player.position;
    this.draw();
  }

  async travel(go) {
    this.player.goLive();
    this.isRunning = true;
    this.draw();
    try {
      await go(this);
    } catch (error) {
      if (this.isOn) this.onError(error.message);
    }
    this.isRunning = this.hurries = false;
    this.player.onChange(); // the badge says so
  }

  // ---- what stops do --------------------------------------------------------------------------

  get state() { return this.player.state; }

  /** Send prompts, and wait until the engine has them. All have the same limit of generated tokens. */
  async send(prompts, maxTokens) {
    const name = `tour-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
    const ids = prompts.map((_, i) => `cmpl-${name}-${i}`);
    this.requests.push(...ids);
    const body = { prompt: prompts, request_id: name, max_tokens: maxTokens, ignore_eos: true, temperature: 0.8, seed: 1 };
    post("/v1/completions", body, this.controller.signal).catch((error) => { if (this.isOn) this.onError(error.message); });
    await this.until(() => ids.every((id) => this.player.history.head.requests.has(id)));
  }

  /** Send the prompts that fill the pool. */
  sendCrowd(prompts) {
    const { max_model_len, block_size } = this.state.facts;
    const most = Math.min(MAX_TOKENS, max_model_len);
    return this.send(prompts.slice(0, CROWD), most - 2 * block_size);
  }

  /** Make steps until a condition holds, or no request is left. */
  async run(condition) {
    while (this.isOn && this.player.history.head.requests.size > 0) {
      const { step } = this.player.history.head;
      await this.player.stepForward();
      await this.until(() => this.player.history.head.step > step);
      for (const arrival of this.player.history.head.now.preempted) this.preempted.add(arrival);
      this.drawProgress();
      if (!this.hurries) await sleep(STEP_MS);
      if (condition()) return;
    }
  }

  async until(condition) {
    while (this.isOn && !condition()) await sleep(POLL_MS);
  }

  /** Return the tour's request of this number, counted from 0, whether it has ended or not. */
  request(number) {
    const id = this.requests[number];
    return this.state.requests.get(id) ?? this.state.ended.find((each) => each.id === id);
  }

  /** Return the text that a request has generated so far. */
  textOf(request) {
    const tokens = request.tokens.slice(request.numPrompt, request.numTokens);
    return tokens.map((token) => this.texts.get(token) ?? "").join("").trim();
  }

  get isFull() { return this.state.counts[FREE] === 0; }

  get numCached() { return this.state.counts[CACHED]; }

  // ---- drawing --------------------------------------------------------------------------------

  draw() {
    const { title, tell } = STOPS[this.stop];
    const isLast = this.stop === STOPS.length - 1;
    $("tour").hidden = false;
    $("tour-number").textContent = this.isRunning ? "The tour" : `Stop ${this.stop + 1} of ${STOPS.length}`;
    $("tour-title").textContent = this.isRunning ? `On the way to stop ${this.stop + 1}` : title;
    $("tour-text").replaceChildren(...(this.isRunning ? [make("p", "hint", "The engine runs to the next stop.")]
      : tell(this).map((text) => this.paragraph(text))));
    $("tour-next").textContent = this.isRunning ? "Hurry" : isLast ? "Show the whole page" : "Next ▶";
    $("tour-skip").hidden = isLast;
    $("tour-back").disabled = this.isRunning || this.stop === 0;
    if (!this.isRunning) $("tour-next").focus({ preventScroll: true });
  }

  /** Say how far the engine is, while it runs to a stop. */
  drawProgress() {
    const { step, counts, facts, requests } = this.player.history.head;
    const count = requests.size;
    $("tour-text").firstChild.textContent = `The engine runs to the next stop. Step ${step}: ${count} `
      + `request${count === 1 ? "" : "s"}, ${counts[FREE]} of ${facts.num_blocks} blocks free.`;
  }

  paragraph(text) {
    return typeof text === "string" ? make("p", "", text) : make("blockquote", "", text.quote);
  }
}
