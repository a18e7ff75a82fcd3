// Two traces side by side: one clock for both, which moves the players of the two pages in the frames.

import { make, outOf } from "./elements.js";
import { get } from "./feed.js";
import { REFERENCED, SHARED } from "./state.js";
import { loadTheme, toggleTheme, watchSystemTheme } from "./theme.js";

const POLL_MS = 20;

const $ = (id) => document.getElementById(id);
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** A trace in its frame, and the moment of each of its records. */
class Side {
  constructor(name, window) {
    const { view } = window;
    Object.assign(this, { name, window, view });
    const { records } = view.player.history;
    this.times = timesOf(records);
    this.ends = this.times.filter((_, i) => records[i].kind === "step"); // of the steps
    this.sampled = runningSum(records.map(sampledBy));
    this.preempted = runningSum(records.map((record) => (record.kind === "step" ? record.preempted.length : 0)));
  }

  /** Show the state after all records up to a time. */
  moveTo(time) {
    const position = countUpTo(this.times, time);
    if (position !== this.view.player.position) this.view.player.moveTo(position);
    this.position = position;
  }

  /** The numbers of the table's row. */
  scores() {
    const { state } = this.view.player;
    const { taken, wasted } = state.waste();
    return [
      state.inOrder("running").length,
      state.inOrder("waiting").length,
      state.numEnded,
      this.sampled[this.position] ?? 0,
      this.preempted[this.position] ?? 0,
      outOf(state.counts[REFERENCED] + state.counts[SHARED], state.facts.num_blocks),
      taken ? `${Math.round((100 * wasted) / taken)} %` : "–",
    ];
  }
}

/** Return when each record became true, in seconds since the first request came. The times never fall. */
function timesOf(records) {
  const start = records.find((record) => record.kind === "request")?.arrived ?? 0;
  let last = 0;
  return records.map((record) => {
    last = Math.max(last, (momentOf(record) ?? start) - start);
    return last;
  });
}

/** The time at which a record became true, in seconds; null for one that has no time. */
function momentOf(record) {
  if (record.kind === "request") return record.arrived;
  if (record.kind !== "step") return null;
  return record.started + record.schedule_seconds + record.run_seconds + record.update_seconds;
}

const sampledBy = ({ kind, scheduled }) =>
  (kind === "step" ? scheduled.reduce((sum, entry) => sum + (entry.sampled_tokens?.length ?? 0), 0) : 0);

/** Return the sums of the first 0, 1, 2, … numbers. */
function runningSum(numbers) {
  const sums = [0];
  for (const number of numbers) sums.push(sums.at(-1) + number);
  return sums;
}

/** Return how many of the numbers, which never fall, are at most `limit`. */
function countUpTo(numbers, limit) {
  let [low, high] = [0, numbers.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] <= limit) low = middle + 1;
    else high = middle;
  }
  return low;
}

class Pair {
  constructor(sides) {
    this.sides = sides;
    this.time = 0;
    this.paused = true;
    this.end = Math.max(...sides.map((side) => side.times.at(-1) ?? 0));
    this.ends = sides.flatMap((side) => side.ends).sort((a, b) => a - b);
    this.secondsPerStep = this.end / Math.max(...sides.map((side) => side.ends.length), 1);
    $("scrub").max = this.end;
    for (const name of ["play", "step", "back", "theme"]) $(name).addEventListener("click", () => this[name]());
    $("scrub").addEventListener("input", () => this.seek(Number($("scrub").value)));
    for (const target of [window, ...sides.map((side) => side.window)]) {
      target.addEventListener("keydown", (event) => this.onKey(event));
    }
    sides.forEach((side, i) => { $(`name-${i}`).textContent = side.name; });
    this.show();
    requestAnimationFrame((now) => this.frame(now));
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select")) return;
    const keys = { " ": "play", ArrowRight: "step", ArrowLeft: "back", t: "theme", "-": "slower", "+": "faster" };
    const name = keys[event.key];
    if (!name || (event.key === " " && event.target.matches("button, a"))) return;
    event.preventDefault();
    this[name]();
  }

  // ---- the user's commands --------------------------------------------------------------------

  play() {
    if (this.time >= this.end) this.time = 0;
    this.paused = !this.paused;
    this.show();
  }

  step() { this.seek(this.ends[countUpTo(this.ends, this.time)] ?? this.end); }

  back() { this.seek(this.ends[countUpTo(this.ends, this.time - 1e-9) - 1] ?? 0); }

  seek(time) {
    this.paused = true;
    this.time = time;
    this.show();
  }

  slower() { this.shiftSpeed(-1); }

  faster() { this.shiftSpeed(1); }

  shiftSpeed(by) {
    const { options, selectedIndex } = $("speed");
    $("speed").selectedIndex = Math.min(Math.max(selectedIndex + by, 0), options.length - 1);
  }

  theme() {
    toggleTheme();
    for (const side of this.sides) side.window.view.takeTheme();
  }

  // ---- drawing --------------------------------------------------------------------------------

  frame(now) {
    const seconds = (now - (this.lastFrame ?? now)) / 1000;
    this.lastFrame = now;
    if (!this.paused) {
      this.time = Math.min(this.time + seconds * Number($("speed").value) * this.secondsPerStep, this.end);
      this.paused = this.time >= this.end;
      this.show();
    }
    requestAnimationFrame((next) => this.frame(next));
  }

  show() {
    for (const side of this.sides) side.moveTo(this.time);
    $("play").textContent = this.paused ? "▶ Play" : "Pause";
    $("where").textContent = `${this.time.toFixed(2)} s of ${this.end.toFixed(2)} s`;
    $("scrub").value = this.time;
    $("scores").replaceChildren(...this.sides.map((side) =>
      make("tr", "", make("th", "", side.name), ...side.scores().map((each) => make("td", "", each.toLocaleString("en"))))));
  }
}

/** Wait until a frame has its whole trace, and return its window. */
async function load(frame, number) {
  frame.src = `/view/page/index.html?trace=${number}`;
  while (!frame.contentWindow?.view?.isComplete) await sleep(POLL_MS);
  return frame.contentWindow;
}

loadTheme();
watchSystemTheme(() => {});
try {
  const names = await get("/view/traces");
  const windows = await Promise.all(names.map((_, i) => load($(`engine-${i}`), i)));
  window.pair = new Pair(windows.map((each, i) => new Side(names[i], each))); // for the console, and for tests
} catch (error) {
  $("message").textContent = error.message;
  $("message").hidden = false;
}
