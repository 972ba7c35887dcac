// Requests to the page's own server, which asks others where there are others.
const KEY = "tercet-key";

export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

function head(body) {
  const key = sessionStorage.getItem(KEY);
  return { ...(body ? { "Content-Type": "application/json" } : {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function send(path, body, signal) {
  const how = body ? { method: "POST", body: JSON.stringify(body) } : {};
  let response;
  try {
    response = await fetch(path, { ...how, headers: head(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server cannot be reached; is it still running?");
  }
  if (response.ok) return response;
  let said = `the server answered with status ${response.status}`;
  try {
    said = (await response.json()).error.message;
  } catch { /* no body of ours */ }
  throw new Refusal(response.status, said);
}

export async function call(path, body, signal) {
  return (await send(path, body, signal)).json();
}

export async function text(path, body) {
  return (await send(path, body)).text();
}

// The events of a stream: a chunk each, or { queue } while the request waits.
export async function* events(path, body, signal) {
  const reader = (await send(path, body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines.map((one) => one.trimEnd())) {
      if (line.startsWith(": queue")) yield { queue: Number(line.slice(8)) };
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      const chunk = JSON.parse(line.slice(6));
      if (chunk.error) throw new Refusal(500, chunk.error.message);
      yield chunk;
    }
  }
}
