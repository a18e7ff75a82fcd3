// Handle buttons, keys and forms.

import { headers, isOneOfTwo, post } from "./feed.js";
import { toggleTheme } from "./theme.js";
import { Tour } from "./tour.js";

const $ = (id) => document.getElementById(id);
const TRAFFIC = ["requests_per_100_steps", "prompt_tokens", "output_tokens", "shared_prefix_tokens"];

/** Set an element's text; an unchanged text causes no layout. */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export class Controls {
  /** @param onSent called with the id of each request that is sent; onTheme when the theme changes; onClear to clear the selection; onFollow to follow the newest token */
  constructor(player, tour, { onSent, onTheme, onClear, onFollow }) {
    this.player = player;
    this.tour = tour;
    this.onSent = onSent;
    this.actions = {
      play: () => player.toggle(),
      step: () => player.stepForward(),
      back: () => player.stepBack(),
      preemption: () => player.next("preemption"),
      eviction: () => player.next("eviction"),
      live: () => player.goLive(),
      slower: () => this.shiftSpeed(-1),
      faster: () => this.shiftSpeed(1),
      theme: () => { toggleTheme(); onTheme(); },
      help: () => ($("help-dialog").open ? $("help-dialog").close() : $("help-dialog").showModal()),
      clear: onClear,
      follow: onFollow,
      prompt: () => $("prompt").focus(),
      guide: () => this.beginTour(),
    };
    for (const name of ["play", "step", "back", "preemption", "eviction", "live", "theme", "help", "guide"]) {
      $(name).addEventListener("click", () => this.run(name));
    }
    $("speed").addEventListener("change", () => this.attempt(player.setSpeed(Number($("speed").value))));
    $("scrub").addEventListener("input", () => this.attempt(player.seekStep(Number($("scrub").value))));
    $("prompt-form").addEventListener("submit", (event) => this.send(event));
    for (const name of TRAFFIC) {
      $(name).addEventListener("input", () => this.showTraffic());
      $(name).addEventListener("change", () => this.changeTraffic());
    }
    if (!isOneOfTwo) document.addEventListener("keydown", (event) => this.onKey(event));
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input:not([type=range]), select")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.target.matches(".traffic input, #lens-panel input") && event.key.startsWith("Arrow")) return; // arrow keys move the slider
    const keys = { " ": "play", ArrowRight: "step", ArrowLeft: "back", p: "preemption", e: "eviction",
                   l: "live", t: "theme", "?": "help", "-": "slower", "+": "faster", Escape: "clear",
                   "/": "prompt", g: "guide", f: "follow" };
    const name = keys[event.key];
    if (this.tour.isOn && name !== "theme" && name !== "help") {
      if (!document.querySelector("dialog[open]") && this.tour.onKey(event.key)) event.preventDefault();
      return;
    }
    if (document.querySelector("dialog[open]") && name !== "help") return;
    if (!name || (event.key === " " && event.target.matches("button, a"))) return;
    event.preventDefault();
    this.run(name);
  }

  beginTour() {
    $("help-dialog").close();
    if ($("guide").hidden) return undefined;
    return this.tour.begin();
  }

  run(name) { return this.attempt(this.actions[name]()); }

  /** Wait for a promise, and show its error message if it is rejected. */
  async attempt(promise) {
    try {
      await promise;
      this.showMessage("");
    } catch (error) {
      this.showMessage(error.message);
    }
  }

  showMessage(message) {
    $("message").textContent = message;
    $("message").hidden = message === "";
  }

  /** Show that the page can't be drawn, in place of the badge that says "live"; an empty message ends that. */
  showFailure(message) {
    $("failure").hidden = message === "";
    $("mode").hidden = message !== "";
    if ($("failure").title !== message) $("failure").title = message;
  }

  shiftSpeed(direction) {
    const options = [...$("speed").options].map((option) => Number(option.value));
    const next = options[options.indexOf(Number($("speed").value)) + direction];
    return next === undefined ? undefined : this.player.setSpeed(next);
  }

  // ---- drawing --------------------------------------------------------------------------------

  draw() {
    const { player } = this;
    const [first, last] = [player.history.firstStep, player.history.head.step];
    write($("play"), player.paused ? "▶ Play" : "Pause");
    $("live").hidden = !player.isLive;
    $("live").disabled = player.follows;
    $("back").disabled = player.position <= player.history.start;
    $("speed").value = this.nearestSpeed();
    Object.assign($("scrub"), { min: first, max: last, value: player.state.step });
    write($("where"), player.state.step < 0 ? "before the first step" : `step ${player.state.step}`);
    const mode = !player.isLive ? "recorded" : player.until ? "searching" : this.tour.isRunning ? "running"
      : player.paused ? "engine paused" : "live";
    const back = last - player.state.step;
    const present = player.until ? `running to the next ${player.until} …` : mode;
    write($("mode"), player.isLive && !player.follows ? `${back} step${back === 1 ? "" : "s"} back` : present);
    $("mode").dataset.mode = mode;
  }

  nearestSpeed() {
    const speeds = [...$("speed").options].map((option) => Number(option.value));
    const wanted = this.player.stepsPerSecond;
    if (wanted === 0) return 0;
    return speeds.filter((each) => each > 0)
      .reduce((best, each) => (Math.abs(Math.log(each / wanted)) < Math.abs(Math.log(best / wanted)) ? each : best));
  }

  // ---- the user's prompt ----------------------------------------------------------------------

  async send(event) {
    event.preventDefault();
    const prompt = $("prompt").value || $("prompt").placeholder;
    const name = `you-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
    $("prompt").value = "";
    $("prompt").blur(); // keys control the page again
    this.showMessage("");
    this.player.goLive(); // the new request exists only in the present
    this.onSent(name);
    try {
      await post("/view/prompt", { prompt, request_id: name, max_tokens: Number($("max-tokens").value) });
    } catch (error) {
      this.showMessage(error.message);
      $("prompt").value ||= prompt; // so that the user can correct it
    }
  }

  /** A model that was trained to hold a conversation gets a question, the built-in one a beginning. */
  takeModel(areChats) {
    $("prompt").placeholder = areChats ? "Why is the sky blue?" : "It was a dark and stormy night, and";
  }

  // ---- traffic --------------------------------------------------------------------------------

  takeTraffic(settings) {
    $("traffic").hidden = settings === null;
    $("guide").hidden = settings === null || !Tour.suits(this.player.state.facts);
    if (settings === null) return;
    for (const name of TRAFFIC) if (document.activeElement !== $(name)) $(name).value = settings[name];
    this.showTraffic();
  }

  showTraffic() {
    for (const name of TRAFFIC) $(`${name}-value`).textContent = $(name).value;
  }

  changeTraffic() {
    const settings = Object.fromEntries(TRAFFIC.map((name) => [name, Number($(name).value)]));
    return this.attempt(post("/view/traffic", settings));
  }
}

/** Ask for the server's API key, and reload the page. */
export function askForKey() {
  const dialog = $("key-dialog");
  dialog.querySelector("form").addEventListener("submit", () => {
    sessionStorage.setItem("minimal-vllm-key", $("key").value);
    location.reload();
  });
  $("key-wrong").hidden = !("Authorization" in headers());
  dialog.showModal();
}
