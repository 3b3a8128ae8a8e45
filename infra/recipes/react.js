// Hooks for React. `client.js` is the relay's own: here from the page's origin, or copied to where your bundler finds it.
import { useEffect, useMemo, useRef, useState } from "react";
import { RelayStream } from "/stream/client.js";

const NEWEST = 50;

/**
 * The newest events of a topic, newest first, and how the connection is: `{events, isConnected, state, transport, lost, error}`.
 * `options`: `token` (a string, or a function that gets one), `version`, `k`, `names` (only these events), `keep`.
 */
export function useRelayStream(topic, options = {}) {
  const { version = "v1", k = 0, names = [], keep = NEWEST } = options;
  const filter = names.join();
  const token = useRef(options.token);
  const [events, setEvents] = useState([]);
  const [status, setStatus] = useState({ state: "connecting", transport: "" });
  const [lost, setLost] = useState(0);
  const [error, setError] = useState(null);

  // A stream outlives its first token: it asks for the newest whenever it needs one.
  useEffect(() => {
    token.current = options.token;
  });

  useEffect(() => {
    const startOver = () => {
      setEvents([]);
      setLost(0);
      setError(null);
    };
    startOver();
    const stream = new RelayStream({
      topics: [topic],
      version,
      k,
      events: filter ? filter.split(",") : undefined,
      token: () => (typeof token.current === "function" ? token.current() : token.current),
    });
    stream.addEventListener("event", ({ id, name, n, ts, data }) => {
      setEvents((known) => [{ id, name, n, ts, data }, ...known].slice(0, keep));
    });
    stream.addEventListener("state", ({ detail }) => setStatus(detail));
    stream.addEventListener("gap", ({ detail }) => setLost((count) => count + (detail.lost ?? 1)));
    stream.addEventListener("reset", startOver);
    stream.addEventListener("end", ({ detail }) => setError(detail));
    return () => stream.close();
  }, [topic, version, k, filter, keep]);

  return { events, isConnected: status.state === "open", ...status, lost, error };
}

/** The newest 50 numbers of a roulette, newest first: `{numbers, isConnected}`. */
export function useRouletteStream(gameId, token, { version = "v1" } = {}) {
  const { events, isConnected } = useRelayStream(`rounds/ROULETTE/${gameId}`, { token, version, k: NEWEST, names: ["update"] });
  const numbers = useMemo(() => events.map(({ data }) => data.number).filter(Boolean), [events]);
  return { numbers, isConnected };
}
