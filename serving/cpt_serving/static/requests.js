// Requests to the server, with an API key if it needs one; the key is forgotten when the tab is closed.

const ENTRY = "cpt-api-key";
const REFUSED = [401, 403];

let refused = false;

/** Whether the server refuses requests because the key is missing or wrong. */
export const needsKey = () => refused;

export function useKey(key) {
  sessionStorage.setItem(ENTRY, key);
  refused = false;
}

function withKey(headers) {
  const key = sessionStorage.getItem(ENTRY);
  return key ? { ...headers, "X-API-Key": key } : { ...headers };
}

/** Fetch a path; a refusal becomes an Error with the server's message. */
async function fetchAnswer(path, options) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options, headers: withKey(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached.");
  }
  if (response.ok) return response;
  const content = await response.json().catch(() => null);
  const error = new Error(content?.error ?? `The server answered with status ${response.status}.`);
  error.requestId = content?.request_id;
  if (REFUSED.includes(response.status)) {
    refused = true;
    document.dispatchEvent(new Event("key-needed"));
  }
  throw error;
}

export async function fetchJson(path, options = {}) {
  const response = await fetchAnswer(path, options);
  const content = await response.json().catch(() => null);
  if (content === null) throw new Error("The server's answer is no JSON.");
  return content;
}

export async function fetchBlob(path) {
  return (await fetchAnswer(path, {})).blob();
}

/** Yield the contents of server-sent events as they arrive. */
export async function* fetchEvents(path, options) {
  const response = await fetchAnswer(path, options);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (waiting + value).split("\n\n");
    waiting = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
  }
}
