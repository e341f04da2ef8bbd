// Speaks to the host: reads, changes with the token, and the stream that tells what happens.

const TOKEN = "ballonet-token";
const RECONNECT_MS = 1000;
/// Longer than any pause between rounds: the host is gone, or the network to it.
const SILENCE_MS = 75_000;

export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

let askForToken = async () => null;
export function whenTokenIsNeeded(ask) {
  askForToken = ask;
}

function headers() {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function request(method, path, body, more = {}) {
  const send = () => fetch(path, { method, body: body === undefined ? undefined : JSON.stringify(body), headers: { ...headers(), ...(body === undefined ? {} : { "Content-Type": "application/json" }) }, ...more });
  let response = await send();
  while (response.status === 401) {
    sessionStorage.removeItem(TOKEN);
    const token = await askForToken();
    if (!token) throw new Refused(401, "Nothing was changed: that needs the token.");
    sessionStorage.setItem(TOKEN, token);
    response = await send();
  }
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    throw new Refused(response.status, problem.detail ?? `the host answered ${response.status}`);
  }
  return response;
}

export async function get(path) {
  return (await request("GET", path)).json();
}

/// Asks for a token first if none is known, so that nothing is sent in vain.
export async function change(method, path, body) {
  if (!sessionStorage.getItem(TOKEN)) {
    const token = await askForToken();
    if (!token) throw new Refused(401, "Nothing was changed: that needs the token.");
    sessionStorage.setItem(TOKEN, token);
  }
  return (await request(method, path, body)).json();
}

/// Calls `heard` with each moment, for ever; `told` with whether the host is there.
export async function follow(heard, told) {
  for (;;) {
    try {
      await listen(heard, told);
    } catch (error) {
      console.debug("stream:", error);
    }
    told(false);
    await new Promise((resolve) => setTimeout(resolve, RECONNECT_MS));
  }
}

async function listen(heard, told) {
  const abort = new AbortController();
  let silence = setTimeout(() => abort.abort(), SILENCE_MS);
  const response = await request("GET", "/v1/events/stream", undefined, { signal: abort.signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let isFirst = true;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return clearTimeout(silence);
    clearTimeout(silence);
    silence = setTimeout(() => abort.abort(), SILENCE_MS);
    text += value;
    const messages = text.split("\n\n");
    text = messages.pop();
    for (const message of messages) {
      const data = message.split("\n").find((line) => line.startsWith("data: "));
      if (!data) continue;
      told(true);
      heard(JSON.parse(data.slice(6)), isFirst);
      isFirst = false;
    }
  }
}
