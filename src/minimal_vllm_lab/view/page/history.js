// All records so far, and the state at any moment of them: keyframes, and steps from the last one.

import { EngineState } from "./state.js";

const MAX_ENTRIES = 1_000_000; // of a live engine's records, each counted as one more; a trace is kept whole
const BLOCKS_PER_STEP = 200; // how many blocks may be copied for a keyframe, per step between two

export class History {
  /** @param base the state before the first record */
  constructor(base, isLive) {
    this.isLive = isLive;
    this.head = base; // the state after all records
    this.records = [];
    this.keyframes = [{ position: 0, state: base.clone() }];
    this.spacing = Math.max(64, Math.ceil(base.facts.num_blocks / BLOCKS_PER_STEP));
    this.numEntries = 0;
    this.dropped = 0; // records that are not kept any more: positions count them too
    this.past = null; // the state that was last asked for, if it is not the head
  }

  /** A position is a number of records: the state after so many. */
  get end() { return this.dropped + this.records.length; }

  get start() { return this.keyframes[0].position; }

  get firstStep() { return this.keyframes[0].state.step; }

  append(record) {
    this.records.push(record);
    this.numEntries += sizeOf(record);
    this.head.apply(record);
    const last = this.keyframes.at(-1);
    if (this.end - last.position >= this.spacing) {
      this.keyframes.push({ position: this.end, state: this.head.clone() });
    }
    if (this.isLive && this.numEntries > MAX_ENTRIES && this.keyframes.length > 1) this.dropOldest();
  }

  dropOldest() {
    this.keyframes.shift();
    const count = this.start - this.dropped;
    for (const record of this.records.splice(0, count)) this.numEntries -= sizeOf(record);
    this.dropped += count;
    if (this.past?.position < this.start) this.past = null; // it can't be stepped on from there
  }

  record(position) { return this.records[position - this.dropped]; }

  /** The state after `position` records. Not to be changed. */
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

  /** The position right after the next step from `position` that `matches`; null if there is none. */
  nextStep(position, matches = () => true) {
    for (let i = position; i < this.end; i += 1) {
      const record = this.record(i);
      if (record.kind === "step" && matches(record)) return i + 1;
    }
    return null;
  }

  /** The position right after the step before the one that `position` is at, or the start. */
  previousStep(position) {
    let passed = 0;
    for (let i = position - 1; i >= this.start; i -= 1) {
      if (this.record(i).kind !== "step") continue;
      passed += 1;
      if (passed === 2) return i + 1;
    }
    return this.start;
  }

  /** The position right after a step, by its number; the nearest that is kept. */
  afterStep(step) {
    for (let i = this.end - 1; i >= this.start; i -= 1) {
      const record = this.record(i);
      if (record.kind === "step" && record.step <= step) return i + 1;
    }
    return this.start;
  }
}

const sizeOf = (record) => 1 + (record.scheduled?.length ?? 0);

export function startState(facts, snapshot) {
  return snapshot ? EngineState.fromSnapshot(facts, snapshot) : new EngineState(facts);
}
