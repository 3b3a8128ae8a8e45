// A native EventSource: no client of ours but `decryptData`, for sealed topics (v2).
//
// The token stands in the URL, where proxies log it: take a ticket, or a short token. When it has ended, `bye` says `expired`,
// and the next connect is refused for good: make a new EventSource, with a new token and `cursor`.
import { decryptData, openWith } from "/stream/client.js";

/** Calls `show` with the data of each update, in order. Returns the EventSource; `close()` it. */
export function follow(topic, { token, version = "v2", k = 0, cursor = "", show, startOver = () => location.reload() }) {
  const url = `/stream/${topic}/${version}/live?${new URLSearchParams({ token, k, cursor })}`;
  if (version === "v2") openWith({ url, token });
  const source = new EventSource(url);
  source.addEventListener("update", async (event) => {
    const data = version === "v2" ? await decryptData(event.data) : JSON.parse(event.data);
    show(data, event.lastEventId);
  });
  source.addEventListener("hello", (event) => {
    if (JSON.parse(event.data).resume === "reset") startOver(); // the log was lost: what this page has is of no log
  });
  source.addEventListener("gap", startOver); // events are missing that nobody has any more
  return source;
}
