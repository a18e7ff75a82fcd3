// Two live engines side by side: a page of the view in each frame, and one set of controls for both.

import { make, outOf } from "./elements.js";
import { get, post } from "./feed.js";
import { REFERENCED, SHARED } from "./state.js";
import { loadTheme, toggleTheme, watchSystemTheme } from "./theme.js";

const POLL_MS = 20;
const SCORES_MS = 200;
const MAX_TOKENS = 48;

const $ = (id) => document.getElementById(id);
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

class Beside {
  constructor(names, windows) {
    this.names = names;
    this.windows = windows;
    for (const name of ["play", "step", "theme"]) $(name).addEventListener("click", () => this.run(name));
    $("speed").addEventListener("change", () => this.attempt(this.setPace({ paused: this.paused })));
    $("prompt-form").addEventListener("submit", (event) => this.send(event));
    for (const target of [window, ...windows]) target.addEventListener("keydown", (event) => this.onKey(event));
    this.takeSpeed(windows[0].view.player.stepsPerSecond);
    names.forEach((name, i) => { $(`name-${i}`).textContent = name; });
    setInterval(() => this.show(), SCORES_MS);
    this.show();
  }

  /** Select the speed that the engines have, if it is one of the list. */
  takeSpeed(speed) {
    const index = [...$("speed").options].findIndex((option) => Number(option.value) === Math.round(speed));
    if (index >= 0) $("speed").selectedIndex = index;
  }

  get paused() { return this.windows[0].view.player.paused; }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("select, input:not([type=range])")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const keys = { " ": "play", ArrowRight: "step", "/": "prompt", t: "theme", "-": "slower", "+": "faster" };
    const name = keys[event.key];
    if (!name || (event.key === " " && event.target.matches("button, a"))) return;
    event.preventDefault();
    this.run(name);
  }

  run(name) { return this.attempt(this[name]()); }

  prompt() { $("prompt").focus(); }

  /** Wait for a promise, and show its error message if it is rejected. */
  async attempt(promise) {
    try {
      await promise;
      $("message").hidden = true;
    } catch (error) {
      $("message").textContent = error.message;
      $("message").hidden = false;
    }
  }

  // ---- the user's commands --------------------------------------------------------------------

  play() { return this.setPace({ paused: !this.paused }); }

  step() { return post("/view/pace", { steps: 1 }); }

  slower() { return this.shiftSpeed(-1); }

  faster() { return this.shiftSpeed(1); }

  shiftSpeed(by) {
    const { options, selectedIndex } = $("speed");
    $("speed").selectedIndex = Math.min(Math.max(selectedIndex + by, 0), options.length - 1);
    return this.setPace({ paused: this.paused });
  }

  setPace({ paused }) {
    const speed = Number($("speed").value);
    return post("/view/pace", { paused, interval: speed ? 1 / speed : 0 });
  }

  send(event) {
    event.preventDefault();
    const prompt = $("prompt").value || $("prompt").placeholder;
    const name = `you-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
    $("prompt").value = "";
    for (const { view } of this.windows) view.sent.add(name);
    return this.attempt(post("/view/prompt", { prompt, request_id: name, max_tokens: MAX_TOKENS }));
  }

  async theme() {
    toggleTheme();
    for (const { view } of this.windows) view.takeTheme();
  }

  // ---- drawing --------------------------------------------------------------------------------

  show() {
    $("play").textContent = this.paused ? "▶ Play" : "Pause";
    $("scores").replaceChildren(...this.windows.map(({ view }, i) =>
      make("tr", "", make("th", "", this.names[i]), ...scores(view.player.state).map((each) => make("td", "", each.toLocaleString("en"))))));
  }
}

/** The numbers of an engine's row. */
function scores(state) {
  const { taken, wasted } = state.waste();
  return [
    Math.max(state.step, 0),
    state.inOrder("running").length,
    state.inOrder("waiting").length,
    state.numEnded,
    outOf(state.counts[REFERENCED] + state.counts[SHARED], state.facts.num_blocks),
    taken ? `${Math.round((100 * wasted) / taken)} %` : "–",
  ];
}

/** Wait until a frame has its engine's state, and return its window. */
async function load(frame, number) {
  frame.src = `/view/page/index.html?trace=${number}`;
  while (!frame.contentWindow?.view?.player.history || !frame.contentWindow.view.player.isLive) await sleep(POLL_MS);
  return frame.contentWindow;
}

loadTheme();
watchSystemTheme(() => {});
try {
  const names = await get("/view/traces");
  const windows = await Promise.all(names.map((_, i) => load($(`engine-${i}`), i)));
  window.pair = new Beside(names, windows); // for the console, and for tests
} catch (error) {
  $("message").textContent = error.message;
  $("message").hidden = false;
}
