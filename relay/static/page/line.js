/**
 * The line between this page and the relay, where it can be broken. `fetch` is replaced before client.js is loaded, so that the
 * client runs as it is, and meets a broken line as it would meet a real one.
 */

const fetchOfTheBrowser = globalThis.fetch;
let line = new AbortController(); // whose signal breaks every request that is under way
let offline = false;
let tellOf = () => {};

globalThis.fetch = async (url, options = {}) => {
  if (offline) throw new TypeError("offline");
  const headers = new Headers(options.headers);
  const position = headers.has("last-event-id") ? `\nLast-Event-ID: ${headers.get("last-event-id")}` : "";
  const asked = `${options.method ?? "GET"} ${String(url).replace(location.origin, "").replace(/([?&]token=)[^&]*/, "$1…")}${position}`;
  tellOf(asked);
  const signal = options.signal ? AbortSignal.any([options.signal, line.signal]) : line.signal;
  const answer = await fetchOfTheBrowser(url, { ...options, signal });
  if (!answer.ok) tellOf(`${answer.status} ${await answer.clone().text()}`);
  return answer;
};

/** `tell` gets the lines of each request, and answers that are refusals. No token is among them. */
export function watchRequests(tell) {
  tellOf = tell;
}

/** Breaks every connection as a network does. */
export function cut() {
  line.abort();
  line = new AbortController();
}

export function setOffline(value) {
  offline = value;
  if (offline) cut();
  window.dispatchEvent(new Event(offline ? "offline" : "online"));
}
