// The playground: sends settings and a scheduler to Python in a worker, and its trace to the view's panels.

const MAX_SECONDS = 30; // a run that takes longer is ended
const FIRST_STEP = 40; // which is shown if the address names none
const PAUSE_MS = 200; // from the last change of a setting to the run
const $ = (id) => document.getElementById(`playground-${id}`);
const form = $("form");
const root = document.getElementById("playground");
const starter = $("starter").content.textContent;

/** Python in a worker, which is made again after it was ended. */
class Python {
  /** @param onState called with what it is doing: "loading", "ready", "running" or an error's text */
  constructor(onState) {
    this.onState = onState;
    this.number = 0;
    this.waiting = null; // a run that begins when the present one has ended
    this.start();
  }

  start() {
    this.isReady = false;
    this.current = null;
    this.onState("loading");
    this.worker = new Worker(root.dataset.worker, { type: "module" });
    this.worker.addEventListener("message", ({ data }) => this.take(data));
    this.worker.addEventListener("error", (event) => this.onState(event.message || "The worker could not be loaded."));
  }

  take(data) {
    if (data.failure) return this.onState(data.failure);
    if (data.ready) this.isReady = true;
    else if (data.number === this.current?.number) this.end(data);
    if (!this.current) {
      this.onState("ready");
      if (this.waiting) this.begin(this.waiting);
    }
  }

  /** Run, when a run in progress has ended; a run that still waits for that is replaced. */
  run(settings, source, onEnd) {
    this.waiting = { settings: JSON.stringify(settings), source, onEnd };
    if (this.isReady && !this.current) this.begin(this.waiting);
  }

  begin({ settings, source, onEnd }) {
    this.waiting = null;
    this.number += 1;
    const timer = setTimeout(() => this.stop(`It was stopped after ${MAX_SECONDS} seconds: is there a loop without an end?`), 1000 * MAX_SECONDS);
    this.current = { number: this.number, onEnd, timer, started: performance.now() };
    this.onState("running");
    this.worker.postMessage({ number: this.number, settings, source });
  }

  end(data) {
    clearTimeout(this.current.timer);
    const { onEnd, started } = this.current;
    this.current = null;
    onEnd({ ...data, seconds: (performance.now() - started) / 1000 });
  }

  /** End a run in progress, and with it the worker: Python can't be interrupted from outside. */
  stop(message) {
    if (!this.current) return;
    this.end({ lines: "", complaint: { message, line: null }, printed: "" });
    this.worker.terminate();
    this.start();
  }
}

/** What the reader has chosen, and its form in the address. */
const choice = {
  inputs: [...form.elements].filter((each) => each.name),

  get settings() {
    return Object.fromEntries(this.inputs.map((each) => [each.name, valueOf(each)]));
  },

  /** What a run with these settings is called. */
  get name() {
    const settings = this.inputs.filter((each) => String(valueOf(each)) !== defaultOf(each));
    const named = settings.map((each) => `${each.name} ${valueOf(each)}`);
    return [...(this.source ? ["MyScheduler"] : []), ...named].join(", ") || "the page's settings";
  },

  get source() { return $("which").value === "own" ? $("code").value : ""; },

  reset() {
    form.reset();
    $("which").value = "engine";
    $("code").value = starter;
  },

  /** Return what differs from the page's defaults, as the fragment of its address. */
  async fragment(step) {
    const parts = new URLSearchParams();
    for (const each of this.inputs) if (String(valueOf(each)) !== defaultOf(each)) parts.set(each.name, valueOf(each));
    if (this.source) parts.set("scheduler", await pack(this.source));
    if (step !== FIRST_STEP) parts.set("step", step);
    return parts.toString();
  },

  /** Take over a fragment, and return its step. */
  async take(fragment) {
    this.reset();
    const parts = new URLSearchParams(fragment);
    for (const each of this.inputs) if (parts.has(each.name)) put(each, parts.get(each.name));
    if (parts.has("scheduler")) {
      $("code").value = await unpack(parts.get("scheduler"));
      $("which").value = "own";
    }
    return Number(parts.get("step") ?? FIRST_STEP);
  },
};

function valueOf(input) {
  if (input.type === "checkbox") return input.checked;
  if (input.type === "number") return input.value === "" ? null : Number(input.value);
  return input.value;
}

function defaultOf(input) {
  if (input.type === "checkbox") return String(input.defaultChecked);
  if (input.type === "number") return input.defaultValue === "" ? "null" : String(Number(input.defaultValue));
  return input.options[0].value;
}

function put(input, text) {
  if (input.type === "checkbox") input.checked = text.toLowerCase() === "true";
  else input.value = text;
}

/** Compress a text, and write it in letters that an address may have. */
async function pack(text) {
  const bytes = await through(new TextEncoder().encode(text), new CompressionStream("deflate-raw"));
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

async function unpack(letters) {
  const bytes = Uint8Array.from(atob(letters.replaceAll("-", "+").replaceAll("_", "/")), (each) => each.charCodeAt(0));
  return new TextDecoder().decode(await through(bytes, new DecompressionStream("deflate-raw")));
}

async function through(bytes, stream) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
}

// ---- showing ------------------------------------------------------------------------------------

const scores = []; // of the last run, and of the one before it
const runs = []; // the records and the name of the last run, and of the one before it

function show(view, { lines, complaint, printed, seconds }) {
  const records = lines.split("\n").filter(Boolean).map((line) => JSON.parse(line));
  const steps = records.filter((record) => record.kind === "step");
  if (records.length) {
    runs.unshift({ records, name: choice.name });
    runs.length = Math.min(runs.length, 2);
    try {
      view.showTrace(records, place.ask(view));
      place.shown = view.player.state.step;
    } catch (error) { // what a scheduler of the reader's did can't be shown
      complaint ??= { message: `The view can't follow this run: ${error.message}`, line: null };
    }
  }
  showComplaint(complaint, steps.length);
  $("printed").hidden = printed === "";
  $("printed").textContent = printed;
  $("status").textContent = steps.length ? `${steps.length} steps in ${seconds.toFixed(1)} s, in this browser.` : "No step was computed.";
  if (steps.length) showScores(records, steps);
  if (beside) showBeside(view);
}

/** Show the run before, if there is one, in a frame of its own. */
function showBeside(view) {
  const [last, before] = runs;
  $("view-before").closest("div").hidden = !before;
  if (!before) return;
  $("name").textContent = `This run: ${last.name}`;
  $("name-before").textContent = `The run before: ${before.name}`;
  beside.showTrace(before.records, view.player.state.step);
}

let beside = null; // the view that shows the run before, if the reader wants to see it

/** Load a second view, and keep it at the step of the first one. */
async function putBeside(view) {
  if (beside) return;
  $("view-before").closest("div").hidden = false; // a hidden frame is not loaded
  beside = await loadView($("view-before"));
  showBeside(view);
  const follow = () => {
    const { step } = view.player.state;
    if (beside.isComplete && step !== follow.shown) beside.player.seekStep(step);
    follow.shown = step;
    requestAnimationFrame(follow);
  };
  follow();
}

function showComplaint(complaint, numSteps) {
  for (const name of ["error", "code-error"]) $(name).hidden = true;
  if (!complaint) return;
  const where = complaint.line === null ? "" : `Line ${complaint.line} of the scheduler: `;
  const until = numSteps ? ` The run ends after ${numSteps} steps.` : "";
  complain(`${where}${complaint.message}${/[.?!]$/.test(complaint.message) ? "" : "."}${until}`);
  if (complaint.line !== null) selectLine(complaint.line);
}

/** Show an error where the reader looks: below the code, or below the settings if the engine's own code runs. */
function complain(text) {
  const name = choice.source ? "code-error" : "error";
  $(name).hidden = false;
  $(name).textContent = text;
}

/** Select a line of the code and bring it into sight, without taking the focus from elsewhere. */
function selectLine(number) {
  const lines = $("code").value.split("\n");
  const start = lines.slice(0, number - 1).reduce((sum, line) => sum + line.length + 1, 0);
  $("code").setSelectionRange(start, start + (lines[number - 1]?.length ?? 0));
  $("code").scrollTop = ($("code").scrollHeight / lines.length) * Math.max(number - 4, 0);
}

function showScores(records, steps) {
  const last = steps.at(-1);
  const sum = (count) => steps.reduce((total, step) => total + count(step), 0);
  const arrived = new Map(records.filter((each) => each.kind === "request").map((each) => [each.request_id, each.arrived]));
  const waits = [];
  for (const step of steps) {
    for (const entry of step.scheduled) {
      if (!entry.sampled_tokens?.length || !arrived.has(entry.request_id)) continue;
      waits.push(step.started + step.run_seconds - arrived.get(entry.request_id));
      arrived.delete(entry.request_id);
    }
  }
  const mean = waits.length ? waits.reduce((total, each) => total + each, 0) / waits.length : null;
  scores.unshift([
    steps.length,
    sum((step) => step.scheduled.reduce((total, entry) => total + (entry.sampled_tokens?.length ?? 0), 0)),
    sum((step) => step.finished.length),
    last.num_waiting,
    sum((step) => step.preempted.length),
    sum((step) => step.evicted_blocks.length),
    last.prefix_queries ? `${Math.round((100 * last.prefix_hits) / last.prefix_queries)} %` : "–",
    mean === null ? "–" : `${Math.round(1000 * mean)} ms`,
  ]);
  scores.length = Math.min(scores.length, 2);
  $("scores").tBodies[0].replaceChildren(...scores.map((cells, i) => {
    const row = document.createElement("tr");
    row.append(...[i === 0 ? "this one" : "the one before", ...cells].map((text, column) => {
      const cell = document.createElement(column === 0 ? "th" : "td");
      cell.textContent = text;
      return cell;
    }));
    return row;
  }));
}

// ---- the page -----------------------------------------------------------------------------------

/** The step that the reader wants to see. A run that is shorter shows its last one, and doesn't change it. */
const place = {
  wanted: FIRST_STEP,
  shown: null, // after the last run

  ask({ player }) {
    const now = player.history ? player.state.step : this.shown;
    if (now !== this.shown) this.wanted = this.shown = now; // the reader went there
    return this.wanted;
  },
};

async function begin() {
  const { wheels } = await (await fetch(root.dataset.files)).json();
  if (wheels.length === 0) {
    $("status").textContent = "This copy of the site was built without Python for browsers, which needs npm and a network.";
    return;
  }
  place.wanted = await choice.take(location.hash.slice(1));
  const view = await loadView($("view"));
  const python = new Python((state) => {
    $("stop").disabled = state !== "running";
    $("status").textContent = { loading: "Python is loading (about 14 MB, the first time) …", running: "Running …" }[state]
      ?? (state === "ready" ? $("status").textContent : `Python could not be loaded: ${state}`);
  });
  const run = async () => {
    python.run(choice.settings, choice.source, (result) => show(view, result));
    await remember(view);
  };
  const react = later(run);
  form.addEventListener("input", () => { if (form.reportValidity()) react(); });
  for (const occasion of ["focusin", "pointerover"]) form.addEventListener(occasion, explain);
  form.addEventListener("submit", (event) => event.preventDefault());
  $("code").addEventListener("input", () => { $("which").value = "own"; });
  $("which").addEventListener("change", run);
  for (const name of ["run", "run-code"]) $(name).addEventListener("click", run);
  $("beside").addEventListener("change", async () => {
    await putBeside(view);
    $("view-before").closest("div").hidden = !$("beside").checked || runs.length < 2;
  });
  root.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
  });
  $("stop").addEventListener("click", () => python.stop("You stopped it."));
  $("reset").addEventListener("click", () => {
    choice.reset();
    place.ask(view);
    place.wanted = FIRST_STEP;
    run();
  });
  $("subclass").addEventListener("click", () => startFrom(starter, run));
  $("whole").addEventListener("click", () => startFrom($("whole-file").content.textContent, run));
  $("link").addEventListener("click", async () => {
    await remember(view);
    await navigator.clipboard?.writeText(location.href).catch(() => {});
    $("status").textContent = "The link is in the address bar, and in the clipboard if the browser allows it.";
  });
  addEventListener("hashchange", async () => {
    place.ask(view);
    place.wanted = await choice.take(location.hash.slice(1));
    await runUnlessForeign(run);
  });
  await runUnlessForeign(run);
  window.playing = { python, view, choice }; // for the console, and for tests
}

/** Show what a setting means, when it gets the focus or the pointer. */
function explain({ target }) {
  const about = target.closest("fieldset p")?.querySelector("small");
  if (about) $("about").textContent = about.textContent;
}

/** Run, but not code that a link has brought: the reader should see it first. */
async function runUnlessForeign(run) {
  if (choice.source === "") return run();
  $("status").textContent = "This link brings a scheduler: read it below, and press Run if you trust it.";
  complain("This scheduler came with the link. Press Run if you trust it.");
}

function startFrom(code, run) {
  $("code").value = code;
  $("which").value = "own";
  run();
}

/** Keep the state in the page's address. */
async function remember(view) {
  const fragment = await choice.fragment(place.ask(view));
  history.replaceState(null, "", fragment ? `#${fragment}` : location.pathname);
}

/** Return a function that calls `work` when it has not been called for a while. */
function later(work) {
  let timer = null;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, PAUSE_MS);
  };
}

if (location.protocol !== "file:") await begin();
