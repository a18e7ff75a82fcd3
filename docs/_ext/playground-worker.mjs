// Python in a thread of its own: the page stays alive, and can end it if a scheduler never returns.

import { loadPyodide } from "./pyodide.mjs";

const MAX_PRINTED = 200; // lines
const loading = load();

async function load() {
  const { wheels } = await (await fetch("files.json")).json();
  const python = await loadPyodide({ indexURL: new URL(".", import.meta.url).href });
  await python.loadPackage(wheels.map((wheel) => new URL(wheel, import.meta.url).href), { messageCallback: () => {} });
  const sources = await (await fetch("sources.zip")).arrayBuffer();
  python.unpackArchive(sources, "zip", { extractDir: "/sources" });
  python.runPython("import sys; sys.path.insert(0, '/sources')");
  const play = python.pyimport("minimal_vllm_lab.view.playground").play_json;
  return { python, play };
}

loading.then(() => postMessage({ ready: true }), (error) => postMessage({ failure: error.message }));

addEventListener("message", async ({ data: { number, settings, source } }) => {
  const { python, play } = await loading;
  const printed = [];
  const print = (line) => { if (printed.length < MAX_PRINTED) printed.push(line); };
  python.setStdout({ batched: print });
  python.setStderr({ batched: print });
  const { lines, complaint } = JSON.parse(play(settings, source));
  postMessage({ number, lines, complaint, printed: printed.join("\n") });
});
