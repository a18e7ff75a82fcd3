// All records so far, and the state at any moment: from the last keyframe, records are applied again.

import { EngineState } from "./state.js";

const MAX_ENTRIES = 1_000_000; // maximum size of a live history (see sizeOf); a trace is kept whole
// Maximum numbers of blocks and of requests to copy for keyframes, per record on average:
const BLOCKS_PER_STEP = 200;
const REQUESTS_PER_STEP = 2;

export class History {
  /** @param base the state before the first record */
  constructor(base, isLive) {
    this.isLive = isLive;
    this.head = base; // the state after all records
    this.records = [];
    this.keyframes = [{ position: 0, state: base.clone() }];
    this.spacing = Math.max(64, Math.ceil(base.facts.num_blocks / BLOCKS_PER_STEP));
    this.numEntries = 0;
    this.dropped = 0; // number of dropped records; positions include them
    this.past = null; // position and state of the last call of `at`, if it was not the head
  }

  /** The position after the last record. A position is a number of records. */
  get end() { return this.dropped + this.records.length; }

  get start() { return this.keyframes[0].position; }

  get firstStep() { return this.keyframes[0].state.step; }

  append(record) {
    this.records.push(record);
    this.numEntries += sizeOf(record);
    this.head.apply(record);
    const last = this.keyframes.at(-1);
    const spacing = Math.max(this.spacing, this.head.requests.size / REQUESTS_PER_STEP);
    if (this.end - last.position >= spacing) {
      this.keyframes.push({ position: this.end, state: this.head.clone() });
    }
    if (this.isLive && this.numEntries > MAX_ENTRIES && this.keyframes.length > 1) this.dropOldest();
  }

  dropOldest() {
    this.keyframes.shift();
    const count = this.start - this.dropped;
    for (const record of this.records.splice(0, count)) this.numEntries -= sizeOf(record);
    this.dropped += count;
    if (this.past?.position < this.start) this.past = null; // the records after it are dropped
  }

  record(position) { return this.records[position - this.dropped]; }

  /** Return the state after `position` records. The caller must not change it. */
  at(position) {
    if (position >= this.end) {
      this.past = null;
      return this.head;
    }
    if (this.past === null || this.past.position > position || position - this.past.position > this.spacing) {
      const keyframe = this.keyframes.findLast((each) => each.position <= position);
      this.past = { position: keyframe.position, state: keyframe.state.clone() };
    }
    for (; this.past.position < position; this.past.position += 1) {
      this.past.state.apply(this.record(this.past.position));
    }
    return this.past.state;
  }

  /** Return the position after the next step that `matches`, starting at `position`; null if there is none. */
  nextStep(position, matches = () => true) {
    for (let i = position; i < this.end; i += 1) {
      const record = this.record(i);
      if (record.kind === "step" && matches(record)) return i + 1;
    }
    return null;
  }

  /** Return the position after the previous step, or the start. */
  previousStep(position) {
    let passed = 0;
    for (let i = position - 1; i >= this.start; i -= 1) {
      if (this.record(i).kind !== "step") continue;
      passed += 1;
      if (passed === 2) return i + 1;
    }
    return this.start;
  }

  /** Return the position after the step of this number, or the nearest one that is kept. */
  afterStep(step) {
    for (let i = this.end - 1; i >= this.start; i -= 1) {
      const record = this.record(i);
      if (record.kind === "step" && record.step <= step) return i + 1;
    }
    return this.start;
  }
}

/** The size of a record: one, plus one per scheduled request. */
const sizeOf = (record) => 1 + (record.scheduled?.length ?? 0);

export function startState(facts, snapshot) {
  return snapshot ? EngineState.fromSnapshot(facts, snapshot) : new EngineState(facts);
}
