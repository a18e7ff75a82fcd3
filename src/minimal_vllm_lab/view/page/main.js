// The page: receives lines, keeps the selected moment, and draws all panels.

import { BatchView } from "./batch.js";
import { Charts } from "./charts.js";
import { askForKey, Controls } from "./controls.js";
import { Digest } from "./digest.js";
import { embedded, follow, isOneOfTwo, readFile, UnauthorizedError } from "./feed.js";
import { History, startState } from "./history.js";
import { Inspector } from "./inspector.js";
import { Lens } from "./lens.js";
import { narrate, narrateCell } from "./narrate.js";
import { Player } from "./player.js";
import { PoolView } from "./pool.js";
import { Queue } from "./queue.js";
import { loadTheme, watchSystemTheme } from "./theme.js";
import { REFERENCED, SHARED } from "./state.js";
import { showTip } from "./tip.js";
import { Tour } from "./tour.js";

const $ = (id) => document.getElementById(id);
const WORDS_MS = 100; // minimum time between drawings of texts and charts, which leaves time for the pool
const MANY_ROWS = 100; // a batch with more rows is drawn as seldom as texts and charts
const NOTHING = { arrival: null, block: null };

class View {
  constructor() {
    this.texts = new Map(); // token id -> its text
    this.selection = NOTHING;
    this.isAutomatic = false; // whether the page made the selection, and not the user
    this.pointed = NOTHING; // the request or block under the pointer
    this.isInInspector = false; // whether the pointer is in the inspector
    this.sent = new Set(); // ids of requests sent from this page that have not arrived yet
    this.mine = new Set(); // arrival numbers of the requests sent from this page
    this.facts = null;
    this.isComplete = false; // whether all records of a trace have come
    this.digest = null;
    this.player = new Player(() => this.changed());
    this.tour = new Tour(this.player, this.texts, {
      onChange: () => this.layoutChanged(),
      onError: (message) => this.controls.showMessage(message),
    });
    this.controls = new Controls(this.player, this.tour, {
      onSent: (name) => this.sent.add(name),
      onTheme: () => this.themeChanged(),
      onClear: () => (this.lens.isOn ? this.lens.close() : this.select(NOTHING)),
      onFollow: () => this.lens.follow(this.selection.arrival, null),
    });
    this.pool = new PoolView($("pool"), {
      onHover: (block, event) => this.point({ arrival: null, block }, block === null ? null : this.describe(block), event),
      onSelect: (block) => this.selectBlock(block),
    });
    this.batch = new BatchView($("batch"), {
      onSeek: (step) => this.controls.attempt(this.player.seekStep(step)),
      onSelect: (arrival) => this.select({ arrival, block: null }),
      getSelected: () => this.selection.arrival,
      onHover: (cell, event) => {
        const row = cell?.row;
        this.point({ arrival: row?.arrival ?? null, block: null }, row ? narrateCell(cell) : null, event);
      },
    });
    this.inspector = new Inspector($("inspector"), this.texts, this.mine);
    this.lens = new Lens(this.player, this.texts, { onChange: () => this.changed() });
    this.queue = new Queue(document, this.mine);
    this.charts = new Charts();
    document.addEventListener("click", (event) => this.onChip(event));
    document.addEventListener("pointerover", (event) => this.onPointer(event));
    new ResizeObserver(() => this.changed()).observe(document.body);
    document.body.classList.toggle("framed", isOneOfTwo);
    document.body.classList.toggle("embedded", embedded !== null);
    if (embedded) document.body.dataset.panels = embedded.panels.join(" ");
    watchSystemTheme(() => this.themeChanged());
  }

  // ---- lines ----------------------------------------------------------------------------------

  take(line) {
    if (line.format) return this.begin(line);
    switch (line.kind) {
      case "texts": return Object.entries(line.texts).forEach(([id, text]) => this.texts.set(Number(id), text));
      case "controls": return this.takeControls(line);
      case "snapshot": return this.restart(line.state, true);
      case "end": return this.controls.showMessage(`The trace ends here: ${line.reason}.`);
    }
    if (line.kind === "reset") this.tour.takeReset();
    this.player.history.append(line);
    this.digest.take(line, this.player.history.head);
    if (this.player.isLive) this.dropOld();
    if (line.kind === "request" && this.sent.delete(line.request_id)) {
      this.mine.add(line.arrival);
      this.select({ arrival: line.arrival, block: null });
    }
    this.player.follow();
    this.changed();
  }

  begin(header) {
    this.facts = header.engine;
    this.tour.isOffered = null; // the engine may be another one
    const { model, num_blocks, block_size, device, max_num_batched_tokens } = this.facts;
    $("facts").textContent = `${model} on ${device} · ${num_blocks.toLocaleString("en")} blocks of ${block_size} tokens`;
    this.charts.begin(this.facts);
    $("block-size").textContent = block_size;
    $("budget").textContent = max_num_batched_tokens.toLocaleString("en");
    this.restart(null, false);
  }

  /** Show a whole trace, at the moment after a step. */
  showTrace(lines, step) {
    for (const line of lines) this.take(line);
    this.showRecorded(step);
  }

  showRecorded(step) {
    this.isComplete = true;
    this.player.moveTo(this.player.history.afterStep(step));
  }

  restart(snapshot, isLive) {
    const state = startState(this.facts, snapshot);
    this.digest = new Digest();
    this.digest.begin(state);
    this.player.begin(new History(state, isLive), isLive);
    document.body.dataset.live = isLive;
    this.changed();
  }

  takeControls({ pace, traffic, touring, are_chats: areChats }) {
    this.player.takePace(pace);
    this.controls.takeTraffic(traffic);
    this.controls.takeModel(areChats);
    if (traffic !== null) this.tour.takeOffer(touring, this.facts);
  }

  /** Drop charts and cells of steps that the history has dropped. */
  dropOld() {
    const { firstStep } = this.player.history;
    if (firstStep > this.digest.firstStep) this.digest.dropBefore(firstStep);
  }

  // ---- selection ------------------------------------------------------------------------------

  select(selection) {
    this.selection = selection;
    this.isAutomatic = selection.arrival === null && selection.block === null;
    this.pointed = NOTHING; // the pointer may not have moved, but the selection is newer
    this.changed();
  }

  /** If the user has selected nothing, select the first running request. */
  selectAutomatically(state) {
    if (this.selection.block !== null || (this.selection.arrival !== null && !this.isAutomatic)) return;
    const current = state.byArrival(this.selection.arrival);
    if (current && current.status !== "finished") return;
    this.selection = { arrival: state.inOrder("running")[0]?.arrival ?? null, block: null };
    this.isAutomatic = true;
  }

  /** Select a block and one of the requests that hold it; the next one if it is selected again. */
  selectBlock(block) {
    if (block === null) return this.select(NOTHING);
    const owners = this.player.state.ownersOf(block).map((request) => request.arrival);
    const again = this.selection.block === block ? owners.indexOf(this.selection.arrival) + 1 : 0;
    this.select({ block, arrival: owners[again % owners.length] ?? null });
  }

  /** Highlight a request or a block under the pointer. @param pointed {arrival, block}, either may be null */
  point(pointed, tip = null, event = null) {
    showTip(tip, event);
    if (pointed.arrival === this.pointed.arrival && pointed.block === this.pointed.block) return;
    this.pointed = pointed;
    this.changed();
  }

  /** Handle a pointer over the name of a request, the cell of a block, or another element. */
  onPointer({ target }) {
    const { arrival, block } = target.closest("[data-arrival], [data-block]")?.dataset ?? {};
    this.isInInspector = target.closest("#inspector") !== null;
    this.point({ arrival: arrival ? Number(arrival) : null, block: block ? Number(block) : null });
  }

  describe(block) {
    if (!this.player.history) return null;
    const state = this.player.state;
    const kind = ["free", "cached", "in use", "shared"][state.kindOf(block)];
    const owners = state.ownersOf(block).map((request) => `#${request.arrival}`).slice(0, 8).join(", ");
    const tokens = state.tokens[block] ?? [];
    const text = Array.from({ length: state.fill[block] }, (_, i) => this.texts.get(tokens[state.offset[block] + i]) ?? "");
    return `block ${block}, ${kind}${owners && ` by ${owners}`}\n${text.join("")}`;
  }

  onChip(event) {
    const { position, of } = event.target.dataset;
    if (position && this.player.isLive) {
      return this.controls.attempt(this.lens.follow(Number(of), Number(position)));
    }
    const target = event.target.closest("[data-arrival], [data-block]");
    if (!target) return;
    if (target.dataset.block) return this.select({ ...this.selection, block: Number(target.dataset.block) });
    this.select({ arrival: Number(target.dataset.arrival), block: null });
  }

  /** The highlighted request or block: the request under the pointer, or the user's selection. */
  get highlighted() {
    if (this.pointed.arrival !== null) return { arrival: this.pointed.arrival, block: null };
    return this.isAutomatic ? NOTHING : this.selection;
  }

  /** Return the blocks that are not dimmed, or null if no block is dimmed. */
  emphasis(state) {
    if (this.lens.light) return new Set(this.lens.light.keys());
    const { arrival, block } = this.highlighted;
    const blocks = new Set(state.byArrival(arrival)?.table ?? []);
    if (block !== null) blocks.add(block);
    if (blocks.size === 0) return null;
    if (this.pointed.block !== null) blocks.add(this.pointed.block);
    return blocks;
  }

  // ---- drawing --------------------------------------------------------------------------------

  /** Take over a theme that the page around this one has chosen. @param name null: it is in the storage */
  takeTheme(name = null) {
    loadTheme(name);
    this.themeChanged();
  }

  themeChanged() {
    this.pool.invalidate();
    this.changed();
  }

  layoutChanged() {
    this.pool.resize();
    this.changed();
  }

  changed() { this.stale = true; }

  frame(now) {
    this.player.tick((now - (this.lastFrame ?? now)) / 1000);
    this.lastFrame = now;
    try {
      if (document.body.clientWidth > 0) this.drawIfStale(now); // it has no width in a hidden frame
      this.controls.showFailure("");
    } catch (error) { // a panel that can't be drawn must not end the others, nor the next frame
      this.stale = true;
      this.controls.showFailure(`This moment could not be drawn: ${error.message}. The page tries again.`);
      if (error.message !== this.lastError) console.error(error);
      this.lastError = error.message;
    }
    requestAnimationFrame((next) => this.frame(next));
  }

  drawIfStale(now) {
    if (this.stale && this.player.history) {
      this.stale = false;
      this.draw();
      this.wordsAreStale = true;
    }
    if (this.wordsAreStale && now - (this.lastWords ?? 0) > WORDS_MS) {
      this.wordsAreStale = false;
      this.lastWords = now;
      this.drawWords();
    }
  }

  draw() {
    const { state } = this.player;
    this.selectAutomatically(state);
    this.controls.draw();
    this.pool.cursor = this.selection.block;
    this.pool.draw(state, this.emphasis(state), this.lens.light);
    if (this.digest.lanes.length <= MANY_ROWS) this.drawBatch(state);
  }

  drawBatch(state) {
    this.batch.draw(this.digest, this.facts, state.step, this.highlighted.arrival);
  }

  drawWords() {
    const { state } = this.player;
    if (this.digest.lanes.length > MANY_ROWS) this.drawBatch(state);
    const isPreviewed = this.pointed.arrival !== null && !this.isInInspector;
    this.inspector.draw(state, isPreviewed ? this.pointed : this.selection);
    this.lens.draw(state);
    this.queue.draw(state);
    this.charts.draw(this.digest, state.step);
    document.body.classList.toggle("guessing", this.digest.hasGuesses);
    $("story").textContent = $("story").title = narrate(state).join(" ");
    const held = state.counts[REFERENCED] + state.counts[SHARED];
    const [free, cached, , shared, inUse] = [...state.counts, held].map((count) => count.toLocaleString("en"));
    $("counts").textContent = `${free} free · ${cached} cached · ${inUse} in use`
      + (state.counts[SHARED] ? ` (${shared} of them shared)` : "");
  }
}

loadTheme();
const view = new View();
window.view = view; // for the console, and for tests
requestAnimationFrame((now) => view.frame(now));
await (embedded ? showFile(embedded) : followServer());

async function followServer() {
  try {
    await follow((line) => view.take(line), () => view.controls.showMessage("Connection lost. Reconnecting …"));
    view.isComplete = true; // a trace
    if (!isOneOfTwo) await view.player.play();
  } catch (error) {
    if (!(error instanceof UnauthorizedError)) throw error;
    askForKey();
  }
}

/** Show the trace of a page of the site; without a file, that page will call showTrace. */
async function showFile({ file, step, request }) {
  if (file === null) return;
  try {
    await readFile(file, (line) => view.take(line));
    view.showRecorded(step);
    if (request !== null) view.select({ arrival: request, block: null });
  } catch (error) {
    view.controls.showMessage(error.message);
  }
}
