// Receive the lines of a trace, live or recorded, from the server. They are server-sent events, read
// with fetch because EventSource can't send an API key.

const RETRY_MS = 1000;

/** Whether this is one of two traces that another page shows side by side, and controls. */
export const isOneOfTwo = new URLSearchParams(location.search).has("trace");

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
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return false;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const line = JSON.parse(event.slice("data: ".length));
      if (line.kind === "complete") return true;
      onLine(line);
    }
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
