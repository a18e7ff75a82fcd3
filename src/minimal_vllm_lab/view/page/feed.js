// Receive the lines of a trace: live or recorded from the server, or from a file beside a page of the
// site. The server's are server-sent events, read with fetch because EventSource can't send an API key.

const RETRY_MS = 1000;
const EVENT = { prefix: "data: ", end: "\n\n" };
const LINE = { prefix: "", end: "\n" };
const place = new URLSearchParams(location.search);

/** Whether this is one of two traces that another page shows side by side, and controls. */
export const isOneOfTwo = place.has("trace");

/** How a page of the site shows this one within itself; null if this page stands alone. */
export const embedded = place.has("panels") ? {
  panels: place.get("panels").split(","),
  file: place.get("file"), // a compressed trace; null: the page hands over one trace after the other
  step: Number(place.get("step")), // what is shown first
  request: place.has("request") ? Number(place.get("request")) : null, // arrival number of the selected one
} : null;

/** The server requires an API key, or did not accept it. */
export class UnauthorizedError extends Error {}

/** Return the headers of all requests to the server. */
export function headers() {
  const key = sessionStorage.getItem("minimal-vllm-key");
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** Call `onLine` with each line until the trace is complete; `onBreak` when the connection is lost. */
export async function follow(onLine, onBreak) {
  for (;;) {
    let ended = false;
    try {
      ended = await readAll(onLine);
    } catch (error) {
      if (error instanceof UnauthorizedError) throw error;
    }
    if (ended) return;
    onBreak();
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

/** Read one connection to its end. Return true if the trace is complete, false if the connection was lost. */
async function readAll(onLine) {
  const response = await fetch(`/view/events${location.search}`, { headers: headers() });
  if (response.status === 401) throw new UnauthorizedError();
  if (!response.ok) return false;
  for await (const line of linesIn(response.body, EVENT)) {
    if (line.kind === "complete") return true;
    onLine(line);
  }
  return false;
}

/** Call `onLine` with each line of a compressed trace. */
export async function readFile(file, onLine) {
  const response = await fetch(file);
  if (!response.ok) throw new Error(`The trace could not be loaded: the server answered ${response.status}.`);
  for await (const line of linesIn(response.body.pipeThrough(new DecompressionStream("gzip")), LINE)) onLine(line);
}

async function* linesIn(stream, { prefix, end }) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(end);
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line.slice(prefix.length));
  }
}

/** Send a request to the server; `signal` may abort it. Throws an error with the server's message if it is rejected. */
export async function post(path, body, signal = null) {
  const response = await fetch(path, {
    method: "POST",
    signal,
    headers: { "Content-Type": "application/json", ...headers() },
    body: JSON.stringify(body),
  });
  if (response.ok) return response;
  throw new Error(await messageOf(response));
}

/** Get JSON from the server. Throws an error with the server's message if it has none. */
export async function get(path) {
  const response = await fetch(path, { headers: headers() });
  if (response.ok) return response.json();
  throw new Error(await messageOf(response));
}

async function messageOf(response) {
  const answer = await response.json().catch(() => ({}));
  return answer.error?.message ?? answer.detail ?? `the server answered ${response.status}`;
}
