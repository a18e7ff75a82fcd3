// The position in time: the same controls for a live engine, which really pauses, and for a trace.

import { post } from "./feed.js";

const MAX_STEPS = 4; // maximum number of steps per frame, if frames take long

export class Player {
  /** @param onChange called after each change */
  constructor(onChange) {
    this.onChange = onChange;
    this.begin(null, false);
    this.stepsPerSecond = 4; // 0: as fast as possible
    this.until = null; // what a live engine runs to: "preemption", "eviction" or nothing
    this.paused = true;
  }

  begin(history, isLive) {
    this.history = history;
    this.isLive = isLive;
    this.position = history ? history.end : 0;
    this.follows = isLive; // whether the position stays at the newest record
    this.due = 0; // number of steps that a playing trace is behind, with a fraction
  }

  /** Take over the engine's pace. */
  takePace({ paused, interval, until = null }) {
    this.paused = paused;
    this.until = until;
    this.stepsPerSecond = interval > 0 ? 1 / interval : 0;
    this.onChange();
  }

  /** Update the position after new records. */
  follow() {
    if (this.follows) this.position = this.history.end;
    this.position = Math.max(this.position, this.history.start);
  }

  get isAtEnd() { return this.position >= this.history.end; }

  get state() { return this.history.at(this.position); }

  // ---- the user's commands --------------------------------------------------------------------

  async toggle() { return this.paused ? this.play() : this.pause(); }

  async play() {
    if (this.isLive) {
      this.goLive();
      return this.setPace({});
    }
    if (this.isAtEnd) this.moveTo(this.history.start);
    this.paused = false;
    this.onChange();
  }

  async pause() {
    if (this.isLive) return this.setPace({ paused: true });
    this.paused = true;
    this.onChange();
  }

  async stepForward() {
    const next = this.history.nextStep(this.position);
    if (!this.isLive || next !== null) {
      await this.pauseIfNeeded();
      return this.moveTo(next ?? this.history.end);
    }
    this.goLive();
    return post("/view/pace", { steps: 1 });
  }

  async stepBack() {
    await this.pauseIfNeeded();
    this.moveTo(this.history.previousStep(this.position));
  }

  async seekStep(step) {
    await this.pauseIfNeeded();
    this.moveTo(this.history.afterStep(step));
  }

  /** Go to the next step with a preemption or eviction; a live engine runs until there is one. */
  async next(occasion) {
    const field = { preemption: "preempted", eviction: "evicted_blocks" }[occasion];
    const found = this.history.nextStep(this.position, (record) => record[field].length > 0);
    if (found === null && this.isLive) {
      this.goLive();
      return this.setPace({ until: occasion });
    }
    await this.pauseIfNeeded();
    if (found === null) throw new Error(`There is no further ${occasion} in this trace.`);
    return this.moveTo(found);
  }

  async setSpeed(stepsPerSecond) {
    this.stepsPerSecond = stepsPerSecond;
    if (this.isLive) return this.setPace({ paused: this.paused });
    this.onChange();
  }

  goLive() {
    this.follows = true;
    this.position = this.history.end;
    this.onChange();
  }

  // ---- moving ---------------------------------------------------------------------------------

  async pauseIfNeeded() {
    this.follows = false;
    if (!this.paused) await this.pause();
  }

  moveTo(position) {
    this.position = position;
    this.follows = this.isLive && this.isAtEnd;
    this.onChange();
  }

  async setPace(pace) {
    const interval = this.stepsPerSecond > 0 ? 1 / this.stepsPerSecond : 0;
    return post("/view/pace", { interval, ...pace });
  }

  /** Advance a playing trace; called once per frame with the time since the last frame. */
  tick(seconds) {
    if (this.isLive || this.paused || !this.history) return;
    const due = this.stepsPerSecond ? this.due + seconds * this.stepsPerSecond : 1;
    this.due = Math.min(due, MAX_STEPS);
    if (this.due < 1) return;
    for (; this.due >= 1; this.due -= 1) {
      const next = this.history.nextStep(this.position);
      if (next === null) {
        this.paused = true;
        this.position = this.history.end;
        break;
      }
      this.position = next;
    }
    this.onChange();
  }
}
