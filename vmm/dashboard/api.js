// Speaks to the host: reads, changes with a token, and the stream that tells what happens.

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

/// Called with what this page may do, whenever that is another: a role, and the name of the token that gives it.
let tellAccess = () => {};
export function whenAccessChanges(tell) {
  tellAccess = tell;
}

function headers() {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/// A token for what needs one; remembered until the tab is closed.
async function takeToken() {
  const token = await askForToken();
  if (!token) throw new Refused(401, "Nothing was done: that needs a token.");
  sessionStorage.setItem(TOKEN, token);
}

async function request(method, path, body, more = {}) {
  const send = () => fetch(path, { method, body: body === undefined ? undefined : JSON.stringify(body), headers: { ...headers(), ...(body === undefined ? {} : { "Content-Type": "application/json" }) }, ...more });
  let response = await send();
  while (response.status === 401) {
    const isWorthless = sessionStorage.getItem(TOKEN) !== null;
    sessionStorage.removeItem(TOKEN);
    // Where reading needs none, one that was withdrawn must not keep anybody from it.
    if (!isWorthless || method !== "GET") await takeToken();
    response = await send();
    learnAccess();
  }
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    throw new Refused(response.status, problem.detail ?? `the host answered ${response.status}`);
  }
  return response;
}

/// Asks what this page may do. Where that is not known, the host refuses what may not be.
export async function learnAccess() {
  const response = await fetch("/v1/access", { headers: headers() }).catch(() => null);
  if (response?.ok) tellAccess(await response.json());
}

export async function get(path) {
  return (await request("GET", path)).json();
}

/// Asks for a token first if none is known, so that nothing is sent in vain.
export async function change(method, path, body) {
  if (!sessionStorage.getItem(TOKEN)) {
    await takeToken();
    learnAccess();
  }
  return (await request(method, path, body)).json();
}

/// Forgets the token, and asks for another.
export async function changeToken() {
  const before = sessionStorage.getItem(TOKEN);
  sessionStorage.removeItem(TOKEN);
  try {
    await takeToken();
  } catch (error) {
    if (before) sessionStorage.setItem(TOKEN, before);
  }
  await learnAccess();
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
  learnAccess();
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
