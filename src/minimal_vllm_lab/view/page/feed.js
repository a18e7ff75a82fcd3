// The lines of a trace, live or recorded, from the server: server-sent events, read by hand so that
// they can be asked for with a key.

const RETRY_MS = 1000;

export class RefusedError extends Error {}

/** Headers for whatever is asked of the server. */
export function headers() {
  const key = sessionStorage.getItem("minimal-vllm-key");
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** Call `onLine` with each line, for ever; `onBreak` when the connection is lost. */
export async function follow(onLine, onBreak) {
  for (;;) {
    let ended = false;
    try {
      ended = await readAll(onLine);
    } catch (error) {
      if (error instanceof RefusedError) throw error;
    }
    if (ended) return;
    onBreak();
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

/** Whether the trace was complete; false: the connection ended before it. */
async function readAll(onLine) {
  const response = await fetch("/view/events", { headers: headers() });
  if (response.status === 401) throw new RefusedError();
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

/** Ask the server for something; the reason if it is refused. */
export async function post(path, body) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers() },
    body: JSON.stringify(body),
  });
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  throw new Error(answer.error?.message ?? answer.detail ?? `the server answered ${response.status}`);
}
