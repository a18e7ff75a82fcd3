// The data of the charts and of the batch: one column per step and one row per request.

import { rightGuesses } from "./state.js";

const SECONDS = 2; // time window of the throughput
const LANE_GAP = 2; // number of steps for which a lane stays empty after a request has ended

export class Digest {
  constructor() {
    this.columns = []; // one per step: the values of the charts
    this.rows = []; // one per request, in order of arrival
    this.rowOf = new Map(); // id -> row, of requests that have not ended
    this.hasGuesses = false; // whether any step had guesses
    this.lanes = []; // lane -> the first step at which it is free; Infinity: in use
  }

  get firstStep() { return this.columns.length ? this.columns[0].step : 0; }

  /** Return the column of a step, or undefined. */
  column(step) { return this.columns[step - this.firstStep]; }

  /** Add a record that has just been applied to `state`. */
  take(record, state) {
    switch (record.kind) {
      case "request": return this.addRow(record, state.step + 1);
      case "abort": return this.endRow(record.request_id, "abort", state.step + 1);
      case "reset": return [...this.rowOf.keys()].forEach((id) => this.endRow(id, "reset", state.step + 1));
      case "step": return this.takeStep(record, state);
    }
  }

  /** Add the requests of a snapshot. */
  begin(state) {
    for (const r of state.requests.values()) {
      this.addRow({ request_id: r.id, arrival: r.arrival, arrived: null,
                    prompt_token_ids: { length: r.numPrompt } }, state.step + 1);
      const known = r.numTokens > r.numPrompt ? r.numTokens - 1 : 0; // a token came from all tokens before it
      this.rowOf.get(r.id).reached = Math.max(r.computed, known);
    }
  }

  addRow(record, step) {
    const row = {
      id: record.request_id,
      arrival: record.arrival,
      arrived: record.arrived,
      numPrompt: record.prompt_token_ids.length,
      lane: this.takeLane(step),
      from: step, // its first column
      until: Infinity, // its last column
      reason: null,
      cells: [], // {step, kind, count, again, cached, guesses, right}, in order
      reached: 0, // highest number of computed tokens so far
      lastToken: null, // time of its last token
    };
    this.rows.push(row);
    this.rowOf.set(row.id, row);
  }

  takeLane(step) {
    let lane = this.lanes.findIndex((free) => free <= step);
    if (lane < 0) lane = this.lanes.length;
    this.lanes[lane] = Infinity;
    return lane;
  }

  endRow(id, reason, step) {
    const row = this.rowOf.get(id);
    row.until = step;
    row.reason = reason;
    this.lanes[row.lane] = step + 1 + LANE_GAP;
    this.rowOf.delete(id);
  }

  takeStep(record, state) {
    const column = { step: record.step, time: state.time, prompt: 0, decode: 0, again: 0, wrong: 0, sampled: 0,
                     ttft: null, itl: null, preempted: record.preempted.length,
                     evicted: record.evicted_blocks.length };
    for (const id of record.preempted) {
      this.rowOf.get(id)?.cells.push({ step: record.step, kind: "preempted", count: 0, again: 0, cached: 0, guesses: 0, right: 0 });
    }
    const latencies = { ttft: [], itl: [] };
    for (const entry of record.scheduled) this.addCell(entry, column, latencies, state.facts.block_size);
    const [free, cached, referenced, shared] = state.counts;
    const waste = state.waste();
    Object.assign(column, {
      ttft: mean(latencies.ttft),
      itl: mean(latencies.itl),
      free, cached, referenced, shared,
      running: record.num_running,
      waiting: record.num_waiting,
      waste: waste.taken ? waste.wasted / waste.taken : 0,
      groups: state.numGroups > 1 ? state.heldByGroup() : [],
      experts: record.experts_used ? mean(record.experts_used) : null,
      hitRate: record.prefix_queries ? record.prefix_hits / record.prefix_queries : 0,
    });
    this.columns.push(column);
    column.throughput = this.throughput();
    for (const [id, reason] of record.finished.slice(record.num_aborted ?? 0)) {
      this.endRow(id, reason, record.step);
    }
  }

  addCell(entry, column, latencies, blockSize) {
    const row = this.rowOf.get(entry.request_id);
    if (!row) return; // the request was aborted while the step ran
    const end = entry.start + entry.num_tokens;
    const guesses = entry.num_guesses ?? 0;
    const again = Math.max(Math.min(end, row.reached) - entry.start, 0);
    const isNew = end - guesses <= row.numPrompt ? "prompt" : "decode"; // what those are that were not computed before
    const kind = again && (end <= row.reached || isNew === "decode") ? "again" : isNew;
    row.reached = Math.max(row.reached, end - (entry.num_rejected ?? 0));
    row.cells.push({
      step: column.step,
      kind,
      count: entry.num_tokens,
      again, // number of its tokens that had been computed before
      cached: (entry.cached_blocks?.length ?? 0) * blockSize,
      guesses,
      right: rightGuesses(entry),
    });
    this.hasGuesses ||= entry.num_guesses > 0;
    column.again += again;
    column[isNew] += entry.num_tokens - again - (entry.num_rejected ?? 0);
    column.wrong += entry.num_rejected ?? 0;
    if (entry.sampled_tokens) this.noteTokens(row, entry.sampled_tokens.length, column, latencies);
  }

  /** The tokens of one step come at once: one latency for all. */
  noteTokens(row, count, column, { ttft, itl }) {
    column.sampled += count;
    if (row.lastToken !== null) itl.push(column.time - row.lastToken);
    else if (row.arrived !== null) ttft.push(column.time - row.arrived);
    row.lastToken = column.time;
  }

  /** Return the tokens sampled per second, over the last seconds. */
  throughput() {
    const last = this.columns.at(-1);
    let sampled = 0;
    let i = this.columns.length - 1;
    for (; i > 0 && last.time - this.columns[i].time < SECONDS; i -= 1) sampled += this.columns[i].sampled;
    const seconds = last.time - this.columns[i].time;
    return seconds > 0 ? sampled / seconds : 0;
  }

  /** Drop all data before a step. */
  dropBefore(step) {
    const keep = this.columns.findIndex((column) => column.step >= step);
    if (keep > 0) this.columns.splice(0, keep);
    this.rows = this.rows.filter((row) => row.until >= step);
    for (const row of this.rows) row.cells.splice(0, firstFrom(row.cells, step));
  }
}

const mean = (values) => (values.length ? values.reduce((sum, each) => sum + each, 0) / values.length : null);

/** Return the index of the first cell at or after a step. */
export function firstFrom(cells, step) {
  let [low, high] = [0, cells.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (cells[middle].step < step) low = middle + 1;
    else high = middle;
  }
  return low;
}
