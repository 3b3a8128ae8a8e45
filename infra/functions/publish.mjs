// Publish one event from a function, with nothing but fetch.
//
// A function that was cut off doesn't know whether its event is in the log. So the event has a key, made from what happened and
// not from when: whoever repeats it with the same key adds nothing.

const TRIES = 4;

/** The relay's answer: `id`, `n`, and whether it had been there already. Throws if the relay refuses it. */
export async function publish(topic, data, key, event = "update") {
  for (let attempt = 1; ; attempt++) {
    let answer;
    try {
      answer = await fetch(`${process.env.RELAY_URL}/stream/${topic}`, {
        method: "POST",
        headers: {
          Authorization: `Bearer ${process.env.RELAY_TOKEN}`,
          "Content-Type": "application/json",
          "Idempotency-Key": key,
        },
        body: JSON.stringify({ event, data }),
        signal: AbortSignal.timeout(5000),
      });
    } catch (error) {
      // No answer: it may be in the log or not.
      if (attempt === TRIES) throw error;
    }
    if (answer?.ok) return answer.json();
    if (answer && (![429, 502, 503, 504].includes(answer.status) || attempt === TRIES)) {
      throw new Error(`${answer.status}: ${await answer.text()}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 100 * 2 ** attempt));
  }
}

/** For instance: an order was paid. */
export async function handler(event) {
  return publish(`orders/shop/${event.order}`, { status: "paid" }, `paid-${event.order}`);
}
