// Node, with npm's `eventsource` 4: prints what a topic tells, one JSON line for each event.
//
//     RELAY_TOKEN=… node node.mjs https://relay.example.com/stream/rounds/ROULETTE/123/v1/live update result
//
// It reconnects by itself, right behind the last id. To go on after a restart, keep that, and put it into the URL as `cursor=`.
import { EventSource } from "eventsource";

const [url, ...names] = process.argv.slice(2);
const headers = { Authorization: `Bearer ${process.env.RELAY_TOKEN}` }; // out of the URL, and so out of logs
const source = new EventSource(url, {
  fetch: (input, init) => fetch(input, { ...init, headers: { ...init.headers, ...headers } }),
});

for (const name of ["hello", "gap", "bye", ...names]) {
  source.addEventListener(name, (event) => {
    console.log(JSON.stringify({ name, id: event.lastEventId, data: JSON.parse(event.data) }));
  });
}
source.addEventListener("error", (event) => {
  if (source.readyState !== EventSource.CLOSED) return; // it tries again
  console.error(`refused: ${event.code} ${event.message}`); // for good: no token, not granted, no such version
  process.exitCode = 1;
});
