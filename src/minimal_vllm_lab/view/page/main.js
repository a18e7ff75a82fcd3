// Puts the page together: lines come in, a moment is chosen, and all panels show it.

import { BatchView } from "./batch.js";
import { Charts } from "./charts.js";
import { askForKey, Controls } from "./controls.js";
import { Digest } from "./digest.js";
import { follow, RefusedError } from "./feed.js";
import { History, startState } from "./history.js";
import { Inspector } from "./inspector.js";
import { narrate, narrateCell } from "./narrate.js";
import { Player } from "./player.js";
import { PoolView } from "./pool.js";
import { Queue } from "./queue.js";
import { loadTheme, watchSystemTheme } from "./theme.js";
import { showTip } from "./tip.js";

const $ = (id) => document.getElementById(id);
const WORDS_MS = 100; // texts and charts change no more often: most of the time is the pool's
const MANY_ROWS = 100; // … and so does a batch that is larger than this
const NOTHING = { arrival: null, block: null };

class View {
  constructor() {
    this.texts = new Map(); // token id -> its text
    this.selection = NOTHING;
    this.isShown = false; // whether what is selected was chosen here, and not by the user
    this.pointed = NOTHING; // what is under the pointer
    this.isNear = false; // whether that is the inspector's own
    this.sent = new Set(); // ids of requests from this page
    this.mine = new Set(); // … and their arrival numbers
    this.facts = null;
    this.digest = null;
    this.player = new Player(() => this.changed());
    this.controls = new Controls(this.player, {
      onSent: (name) => this.sent.add(`cmpl-${name}-0`),
      onTheme: () => this.themeChanged(),
      onClear: () => this.select(NOTHING),
    });
    this.pool = new PoolView($("pool"), {
      onHover: (block, event) => this.point({ arrival: null, block }, block === null ? null : this.describe(block), event),
      onSelect: (block) => this.selectBlock(block),
    });
    this.batch = new BatchView($("batch"), {
      onSeek: (step) => this.controls.attempt(this.player.seekStep(step)),
      onSelect: (arrival) => this.select({ arrival, block: null }),
      getSelected: () => this.selection.arrival,
      onHover: (place, event) => {
        const row = place?.row;
        this.point({ arrival: row?.arrival ?? null, block: null }, row ? narrateCell(place) : null, event);
      },
    });
    this.inspector = new Inspector($("inspector"), this.texts, this.mine);
    this.queue = new Queue(document, this.mine);
    this.charts = new Charts();
    document.addEventListener("click", (event) => this.onChip(event));
    document.addEventListener("pointerover", (event) => this.onPointer(event));
    new ResizeObserver(() => this.changed()).observe(document.body);
    watchSystemTheme(() => this.themeChanged());
  }

  // ---- lines ----------------------------------------------------------------------------------

  take(line) {
    if (line.format) return this.begin(line);
    switch (line.kind) {
      case "texts": return Object.entries(line.texts).forEach(([id, text]) => this.texts.set(Number(id), text));
      case "controls": return this.takeControls(line);
      case "snapshot": return this.restart(line.state, true);
      case "end": return this.controls.say(`The trace ends here: ${line.reason}.`);
    }
    this.player.history.append(line);
    this.digest.take(line, this.player.history.head);
    if (this.player.isLive) this.forgetOld();
    if (line.kind === "request" && this.sent.delete(line.request_id)) {
      this.mine.add(line.arrival);
      this.select({ arrival: line.arrival, block: null });
    }
    this.player.follow();
    this.changed();
  }

  begin(header) {
    this.facts = header.engine;
    const { model, num_blocks, block_size, device, max_num_batched_tokens } = this.facts;
    $("facts").textContent = `${model} on ${device} · ${num_blocks.toLocaleString("en")} blocks of ${block_size} tokens`;
    $("block-size").textContent = block_size;
    $("budget").textContent = max_num_batched_tokens.toLocaleString("en");
    this.restart(null, false);
  }

  restart(snapshot, isLive) {
    const state = startState(this.facts, snapshot);
    this.digest = new Digest();
    this.digest.begin(state);
    this.player.begin(new History(state, isLive), isLive);
    document.body.dataset.live = isLive;
    this.changed();
  }

  takeControls({ pace, traffic }) {
    this.player.takePace(pace);
    this.controls.takeTraffic(traffic);
  }

  /** What the history has forgotten can't be gone back to: its charts and cells are of no use. */
  forgetOld() {
    const { firstStep } = this.player.history;
    if (firstStep > this.digest.firstStep) this.digest.dropBefore(firstStep);
  }

  // ---- selection ------------------------------------------------------------------------------

  select(selection) {
    this.selection = selection;
    this.isShown = selection.arrival === null && selection.block === null;
    this.pointed = NOTHING; // the pointer may lie still where it was
    this.changed();
  }

  /** As long as nothing is selected, show the first request that runs. */
  showSomething(state) {
    if (this.selection.block !== null || (this.selection.arrival !== null && !this.isShown)) return;
    const current = state.byArrival(this.selection.arrival);
    if (current && current.status !== "finished") return;
    this.selection = { arrival: state.inOrder("running")[0]?.arrival ?? null, block: null };
    this.isShown = true;
  }

  /** The block, and one of those who have it; again: the next of them. */
  selectBlock(block) {
    if (block === null) return this.select(NOTHING);
    const owners = this.player.state.ownersOf(block).map((request) => request.arrival);
    const again = this.selection.block === block ? owners.indexOf(this.selection.arrival) + 1 : 0;
    this.select({ block, arrival: owners[again % owners.length] ?? null });
  }

  /** @param pointed {arrival, block}, either of which may be null */
  point(pointed, tip = null, event = null) {
    showTip(tip, event);
    if (pointed.arrival === this.pointed.arrival && pointed.block === this.pointed.block) return;
    this.pointed = pointed;
    this.changed();
  }

  /** The pointer has come to another element: the name of a request, the cell of a block, or neither. */
  onPointer({ target }) {
    const { arrival, block } = target.closest("[data-arrival], [data-block]")?.dataset ?? {};
    this.isNear = target.closest("#inspector") !== null;
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
    const target = event.target.closest("[data-arrival], [data-block]");
    if (!target) return;
    if (target.dataset.block) return this.select({ ...this.selection, block: Number(target.dataset.block) });
    this.select({ arrival: Number(target.dataset.arrival), block: null });
  }

  /** The request that stands out: the one under the pointer, or else what the user selected. */
  get outstanding() {
    if (this.pointed.arrival !== null) return { arrival: this.pointed.arrival, block: null };
    return this.isShown ? NOTHING : this.selection;
  }

  /** The blocks that are not dimmed; null: none are. */
  emphasis(state) {
    const { arrival, block } = this.outstanding;
    const blocks = new Set(state.byArrival(arrival)?.table ?? []);
    if (block !== null) blocks.add(block);
    if (blocks.size === 0) return null;
    if (this.pointed.block !== null) blocks.add(this.pointed.block);
    return blocks;
  }

  // ---- drawing --------------------------------------------------------------------------------

  themeChanged() {
    this.pool.invalidate();
    this.changed();
  }

  changed() { this.stale = true; }

  frame(now) {
    this.player.tick((now - (this.lastFrame ?? now)) / 1000);
    this.lastFrame = now;
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
    requestAnimationFrame((next) => this.frame(next));
  }

  draw() {
    const { state } = this.player;
    this.showSomething(state);
    this.controls.draw();
    this.pool.cursor = this.selection.block;
    this.pool.draw(state, this.emphasis(state));
    if (this.digest.lanes.length <= MANY_ROWS) this.drawBatch(state);
  }

  drawBatch(state) {
    this.batch.draw(this.digest, this.facts, state.step, this.outstanding.arrival);
  }

  drawWords() {
    const { state } = this.player;
    if (this.digest.lanes.length > MANY_ROWS) this.drawBatch(state);
    const isPreviewed = this.pointed.arrival !== null && !this.isNear;
    this.inspector.draw(state, isPreviewed ? this.pointed : this.selection);
    this.queue.draw(state);
    this.charts.draw(this.digest, state.step);
    $("story").textContent = $("story").title = narrate(state).join(" ");
    const counts = state.counts.map((count) => count.toLocaleString("en"));
    $("counts").textContent = ["free", "cached", "in use", "shared"]
      .map((name, kind) => `${counts[kind]} ${name}`).join(" · ");
  }
}

loadTheme();
const view = new View();
window.view = view; // for the console, and for tests
requestAnimationFrame((now) => view.frame(now));
try {
  await follow((line) => view.take(line), () => view.controls.say("The connection is lost; trying again."));
  await view.player.play(); // a trace, which has come in whole
} catch (error) {
  if (!(error instanceof RefusedError)) throw error;
  askForKey();
}
