// A composable for Vue 3. `client.js` is the relay's own: here from the page's origin, or copied to where your bundler finds it.
import { computed, onScopeDispose, ref, shallowRef, toValue, watch } from "vue";
import { RelayStream } from "/stream/client.js";

/**
 * The newest events of a topic (a string, a ref or a getter), newest first, and how the connection is: refs `{events,
 * isConnected, state, lost, error}`. `options`: `token` (a string, or a function that gets one), `version`, `k`, `names` (only
 * these events), `keep`.
 */
export function useRelayStream(topic, { token, version = "v1", k = 0, names, keep = 50 } = {}) {
  const events = shallowRef([]);
  const state = ref("connecting");
  const lost = ref(0);
  const error = shallowRef(null);
  let stream = null;

  function startOver() {
    events.value = [];
    lost.value = 0;
    error.value = null;
  }

  function open(name) {
    stream?.close();
    startOver();
    stream = new RelayStream({ topics: [name], token, version, k, events: names });
    stream.addEventListener("event", ({ id, name, n, ts, data }) => {
      events.value = [{ id, name, n, ts, data }, ...events.value].slice(0, keep);
    });
    stream.addEventListener("state", ({ detail }) => (state.value = detail.state));
    stream.addEventListener("gap", ({ detail }) => (lost.value += detail.lost ?? 1));
    stream.addEventListener("reset", startOver);
    stream.addEventListener("end", ({ detail }) => (error.value = detail));
  }

  watch(() => toValue(topic), open, { immediate: true });
  onScopeDispose(() => stream.close());
  return { events, isConnected: computed(() => state.value === "open"), state, lost, error };
}
