/**
 * Reads an Edge Relay from a browser. One ES module without dependencies; `client.d.ts` beside it has the types.
 *
 *     const stream = new RelayStream({ topics: ["rounds/ROULETTE/123"], token: () => fetchToken() });
 *     stream.addEventListener("update", (event) => show(event.data));
 *
 * From below: the parser, ids, choices and seals are plain functions of their arguments, and tested as such. A `Part` reads as
 * many topics as fit one request, over whichever transport gets through; whatever it is told goes through `Part.deliver`,
 * which alone decides what is new. `Tabs` lets one tab of several do the reading. `RelayStream` is what an application sees.
 *
 * The one rule: the cursor moves only behind what was delivered. So anything may be cut at any moment and asked for again.
 */

export const LIMITS = Object.freeze({
  helloMs: 5000, // no `hello` by then: something on the way holds the stream back
  heartbeatMs: 15000, // until a `hello` says otherwise
  silence: 2.5, // heartbeats without a byte, and the connection is dead
  answerMs: 15000, // for an answer that the relay doesn't hold back on purpose
  waitS: 20, // of a long poll; below the 30 s at which edges cut
  heldMs: 3000, // an answer that breaks later than that broke while it waited
  deaths: 4, // streams in a row that were cut off young
  youngMs: 30000,
  probeMs: 60000, // to the first look whether streams get through again; each is twice as far from the last,
  probeMaxMs: 600000, // up to this
  backoffMs: 1000, // after the first failure, then twice as long each time
  backoffMaxMs: 60000,
  renewMs: 30000, // a token is renewed so long before it ends, or in the last fifth of a short life
  skewMs: 60000, // how wrong clocks may be, as in Iron
  sealMs: 300000, // the age of a seal that has no end of its own
  leaderMs: 40000, // a leading tab that says nothing for so long is replaced
  inflatedBytes: 1 << 26, // of what was compressed before it was sealed
});
const BLOCK_CHARS_MAX = 1 << 24; // far above what a relay sends; without it a stream that never ends a block fills the memory
const TOPICS_MAX = 100; // of a request
const NEWEST_EVENTS_MAX = 1000; // k × topics
const HEAD_BYTES = 8192; // a relay's limit for a request's line and headers
const HEAD_OTHER_BYTES = 2800; // what is in there beside topics and token: the position (512), and what the browser adds
const PAGE_EVENTS = 500;
const TIMER_MS_MAX = 0x7fffffff;
const TOLD_MAX = 5000; // messages that a tab keeps while it catches up
const KEYS_EARLY_MS = [20000, 55000]; // the next key is asked for at a random moment, so long before it is used
const NOTICES = new Set(["state", "gap", "reset", "refused", "end", "frame", "event"]);
const TOPIC = /^[A-Za-z0-9._:-]{1,128}(\/[A-Za-z0-9._:-]{1,128}){2}$/;

// Server-Sent Events

/**
 * Reads a stream from bytes that come in pieces of any size.
 * https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
 *
 * A CR ends its line at once, so that no event waits for the next piece; an LF that follows it, there or in the next piece,
 * belongs to it.
 */
export class Parser {
  constructor() {
    this._decoder = new TextDecoder(); // takes a BOM away, and keeps what is left of a character between two pieces
    this._line = "";
    this._afterCr = false;
    this._clear();
  }

  /** The blocks that this piece completes: `{name, data, id, retry}`, each undefined where the block lacks it. */
  feed(piece) {
    const blocks = [];
    const text = this._decoder.decode(piece, { stream: true });
    let from = 0;
    if (this._afterCr && text) {
      this._afterCr = false;
      if (text[0] === "\n") from = 1;
    }
    const ends = /\r\n?|\n/g;
    ends.lastIndex = from;
    for (let end = ends.exec(text); end; end = ends.exec(text)) {
      const line = this._line + text.slice(from, end.index);
      this._line = "";
      from = ends.lastIndex;
      if (line) this._take(line);
      else if (this._filled) blocks.push(this._finish());
    }
    this._afterCr = text ? text.endsWith("\r") : this._afterCr;
    this._line += text.slice(from);
    if (this._line.length + this._chars > BLOCK_CHARS_MAX) throw new RangeError("an event that doesn't end");
    return blocks;
  }

  _take(line) {
    const colon = line.indexOf(":");
    if (colon === 0) return; // a comment
    const name = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value[0] === " ") value = value.slice(1);
    if (name === "data") this._data.push(value);
    else if (name === "event") this._block.name = value;
    else if (name === "id" && !value.includes("\0")) this._block.id = value;
    else if (name === "retry" && /^[0-9]+$/.test(value)) this._block.retry = Number(value);
    else return;
    this._filled = true;
    this._chars += line.length;
  }

  _finish() {
    const block = this._block;
    if (this._data.length) block.data = this._data.join("\n");
    this._clear();
    return block;
  }

  _clear() {
    this._block = { name: undefined, data: undefined, id: undefined, retry: undefined };
    this._data = [];
    this._filled = false;
    this._chars = 0;
  }
}

// Ids

/**
 * Where in its topic an event is: `{ms, s, n}`, null for what is no id. Of one topic's events, ids rise for as long as the log
 * isn't reset, whatever epoch they are of. `n` is null where the id doesn't say.
 */
export function placeOf(id) {
  const match = /^(?:[0-9]+-)?[0-9a-z]+\.([0-9]+)-([0-9]+)(?:\.([0-9]+)-[0-9a-z]+)?$/.exec(id || "");
  return match && { ms: Number(match[1]), s: Number(match[2]), n: match[3] === undefined ? null : Number(match[3]) };
}

export function isAfter(place, other) {
  return place.ms > other.ms || (place.ms === other.ms && place.s > other.s);
}

// Requests

/** Topics in groups that fit a request each: by their count, by k × topics, and by the characters that there is room for. */
export function splitTopics(topics, k, room) {
  const most = Math.max(1, Math.min(TOPICS_MAX, k ? Math.floor(NEWEST_EVENTS_MAX / k) : TOPICS_MAX));
  const groups = [];
  let left = 0;
  for (const topic of topics) {
    const size = "&topic=".length + topic.length;
    if (!groups.length || size > left || groups[groups.length - 1].length >= most) {
      groups.push([]);
      left = room;
    }
    groups[groups.length - 1].push(topic);
    left -= size;
  }
  return groups;
}

/** Characters that a request's line has for topics beside a token of this length. */
export function roomFor(tokenLength) {
  return Math.max(300, HEAD_BYTES - HEAD_OTHER_BYTES - tokenLength);
}

/** What a URL of a stream or a page asks for, as options; null for another URL. `base` is where the relay is. */
export function readUrl(url) {
  const parsed = new URL(url, typeof location === "undefined" ? undefined : location.href);
  const path = /^(.*)\/stream\/(?:(.+)\/)?(v[0-9]+)\/(?:live|poll)$/.exec(parsed.pathname);
  if (!path) return null;
  const query = parsed.searchParams;
  const options = {
    base: parsed.origin + path[1],
    topics: path[2] ? [path[2].split("/").map(decodeURIComponent).join("/")] : query.getAll("topic"),
    version: path[3],
  };
  if (query.get("token")) options.token = query.get("token");
  if (query.get("k")) options.k = Number(query.get("k"));
  if (query.get("events")) options.events = query.get("events").split(",");
  const position = ["last_event_id", "lastEventId", "lastEventID", "cursor"].map((name) => query.get(name)).find(Boolean);
  if (position) options.cursor = position;
  return options;
}

/** Topics need no escaping: none of their characters means anything in a URL. */
function requestUrl(base, door, topics, version, query) {
  const single = topics.length === 1;
  const pairs = single ? [] : topics.map((topic) => `topic=${topic}`);
  for (const [name, value] of Object.entries(query)) pairs.push(`${name}=${encodeURIComponent(value)}`);
  return `${base}/stream/${single ? `${topics[0]}/` : ""}${version}/${door}${pairs.length ? `?${pairs.join("&")}` : ""}`;
}

/** The claims of a JWT; none for anything else, such as a ticket. */
function claimsOf(token) {
  try {
    return JSON.parse(new TextDecoder().decode(fromBase64Url(token.split(".")[1]))) || {};
  } catch (error) {
    return {};
  }
}

/** `Retry-After`, which is seconds or a date (RFC 9110, section 10.2.3), in milliseconds. */
export function retryAfterMs(value, nowMs) {
  if (!value) return 0;
  const ms = /^[0-9]+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - nowMs;
  return ms > 0 ? ms : 0;
}

// Choices

/**
 * Which transport comes next, and why.
 *
 * `level` is the page's verdict on its way to the relay: 0 streams get through, 1 answers that wait do, 2 only short ones.
 */
export function chooseTransport({ forced, can, level, reason, ask }) {
  if (forced) return [forced, "asked for"];
  if (ask) return ["poll", "EventSource doesn't say why it failed: a page does"];
  if (level >= 2) return ["poll", reason];
  if (level === 1) return ["long-poll", reason];
  if (can.stream) return ["sse", "streams get through"];
  if (can.eventSource) return ["event-source", "this browser's fetch can't stream"];
  return ["long-poll", "this browser can't stream, or EventSource can't tell all names"];
}

/** How a part has fared: in a row, attempts that failed, streams that died young, waiting answers that were cut. */
export const HEALTHY = Object.freeze({ failures: 0, deaths: 0, cuts: 0, renewed: false, ask: false });

/**
 * What follows from how an attempt ended: `{health, waitMs}`, and where they apply `wakes` (the wait may be cut short when the
 * network or the user comes back), `fall` (a new verdict), `renew` (the token), `end` (for good).
 */
export function decide(health, outcome, limits, random) {
  const well = { ...health, failures: 0, renewed: false, ask: false };
  const worse = { ...health, failures: health.failures + 1, ask: false };
  const laterMs = Math.min(limits.backoffMaxMs, limits.backoffMs * 2 ** (worse.failures - 1)) * (0.5 + random() / 2);
  const died = (state, reason, waitMs) => {
    const deaths = health.deaths + 1;
    if (deaths < limits.deaths) return { health: { ...state, deaths }, waitMs, wakes: true };
    return { health: { ...state, deaths: 0 }, waitMs, fall: { level: 1, reason } };
  };
  switch (outcome.kind) {
    case "left": // we ended it ourselves, to begin anew
      return { health: outcome.greeted ? well : health, waitMs: 0 };
    case "page":
      return { health: outcome.waitS ? { ...well, cuts: 0 } : well, waitMs: pageWaitMs(outcome, random), wakes: true };
    case "silent":
      return { health, waitMs: 0, fall: { level: 1, reason: "no hello came: something on the way holds streams back" } };
    case "bye": // also without a hello: that is an answer
      return {
        health: outcome.greeted ? { ...well, deaths: 0 } : worse,
        waitMs: outcome.waitMs * (1 + random() / 10),
        renew: outcome.reason === "expired",
      };
    case "cut": {
      const waitMs = Math.max(laterMs, outcome.greeted ? outcome.retryMs || 0 : 0);
      const state = outcome.greeted ? { ...well, failures: worse.failures } : worse;
      if (outcome.livedMs >= limits.youngMs) return { health: { ...well, deaths: 0 }, waitMs, wakes: true };
      return died(state, "streams keep dying", waitMs);
    }
    case "stalled": // a dead network; but if not even a heartbeat came, something lets only the beginning through
      return outcome.heard ? { health: well, waitMs: 0 } : died(well, "streams fall silent after hello", 0);
    case "unexplained": // EventSource
      return { ...died(worse, "EventSource keeps failing", laterMs), health: { ...worse, deaths: health.deaths + 1, ask: true } };
    case "mime":
      return { health: worse, waitMs: laterMs, wakes: true, fall: outcome.stream && { level: 1, reason: "streams are answered by something else" } };
    case "status":
      return afterStatus(health, worse, outcome, limits, laterMs);
    case "failed": // no answer: no network, no relay, no token, or a long poll that was cut
      return held(worse, outcome, limits, { waitMs: laterMs, wakes: true });
    default:
      throw new Error(`no such outcome: ${outcome.kind}`);
  }
}

function pageWaitMs({ more, waitS, empty, livedMs, paceMs }, random) {
  if (more) return 0;
  // An answer that should have waited and didn't, of a relay that stops: not to be asked again in a tight loop.
  if (waitS) return empty && livedMs < 1000 ? 1000 + random() * 1000 : 0;
  return paceMs * (0.8 + random() * 0.4);
}

/** An answer that was to wait and broke while it did. Two in a row, and something on the way doesn't let answers wait. */
function held(state, { waitS, livedMs }, limits, step) {
  if (!waitS || livedMs < limits.heldMs) return { ...step, health: state };
  if (state.cuts < 1) return { ...step, health: { ...state, cuts: state.cuts + 1 } };
  return { ...step, health: { ...state, cuts: 0 }, fall: { level: 2, reason: "answers that wait are cut off" } };
}

function afterStatus(health, worse, outcome, limits, laterMs) {
  const { status, code, detail, afterMs, waitS, renewable } = outcome;
  if (status === 401 && renewable && !health.renewed) return { health: { ...health, renewed: true, ask: false }, waitMs: 0, renew: true };
  if (status < 500 && ![408, 421, 425, 429].includes(status)) return { end: { reason: code || `http_${status}`, status, detail } };
  const step = { health: worse, waitMs: afterMs ? Math.max(laterMs, afterMs) + laterMs / 4 : laterMs, wakes: !afterMs };
  if (waitS && status === 429) return { ...step, fall: { level: 2, reason: "the relay has too many answers that wait" } };
  return held(worse, outcome, limits, step);
}

// Seals: Iron's Fe26.2, https://hapi.dev/module/iron/api

export class SealError extends Error {
  /** `reason` is for programs: `malformed`, `unknown_key`, `forged`, `expired`, or one of `whatIsWrong`. */
  constructor(reason, message) {
    super(message);
    this.name = "SealError";
    this.reason = reason;
  }
}

function fromBase64Url(text) {
  if (!/^[A-Za-z0-9_-]*$/.test(text) || text.length % 4 === 1) throw new SealError("malformed", "no base64url");
  return Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (char) => char.charCodeAt(0));
}

const NO_WEBCRYPTO = "sealed events need WebCrypto, which browsers have on pages over https or of localhost";

function hasWebCrypto() {
  return typeof crypto === "object" && Boolean(crypto.subtle);
}

function subtle() {
  if (!hasWebCrypto()) throw new SealError("no_webcrypto", NO_WEBCRYPTO);
  return crypto.subtle;
}

/** The seal's parts. Throws a SealError for what is none. */
export function parseSeal(text) {
  const parts = String(text).split("*");
  if (parts.length !== 8 || parts[0] !== "Fe26.2") throw new SealError("malformed", "no Fe26.2 seal");
  const [, id, encryptionSalt, iv, ciphertext, expiration, integritySalt, mac] = parts;
  if (!/^[0-9]*$/.test(expiration)) throw new SealError("malformed", "a seal whose end is no time");
  return {
    id,
    encryptionSalt,
    iv: fromBase64Url(iv),
    ciphertext: fromBase64Url(ciphertext),
    expiresMs: expiration ? Number(expiration) : null,
    integritySalt,
    mac: fromBase64Url(mac),
    signed: parts.slice(0, 6).join("*"),
  };
}

/** Bytes are the key; a password gives one by PBKDF2 with one iteration, since it is meant to be a random secret. */
async function keyBytes(secret, salt) {
  if (typeof secret !== "string") return secret;
  const encoder = new TextEncoder();
  const password = await subtle().importKey("raw", encoder.encode(secret), "PBKDF2", false, ["deriveBits"]);
  const how = { name: "PBKDF2", hash: "SHA-1", salt: encoder.encode(salt), iterations: 1 };
  return new Uint8Array(await subtle().deriveBits(how, password, 256));
}

const imported = new WeakMap(); // raw keys, as WebCrypto's

async function cryptoKeys(secret, seal) {
  const { encryption, integrity } = typeof secret === "string" || secret instanceof Uint8Array ? { encryption: secret, integrity: secret } : secret;
  const get = async (part, salt, algorithm, use) => {
    const known = typeof part === "string" ? undefined : imported.get(part) || {};
    if (known && known[use]) return known[use];
    const key = await subtle().importKey("raw", await keyBytes(part, salt), algorithm, false, [use]);
    if (known) imported.set(part, Object.assign(known, { [use]: key }));
    return key;
  };
  return [
    await get(encryption, seal.encryptionSalt, "AES-CBC", "decrypt"),
    await get(integrity, seal.integritySalt, { name: "HMAC", hash: "SHA-256" }, "verify"),
  ];
}

/** What is sealed, as JSON's value. `secret` is a password, 32 bytes, or `{encryption, integrity}` of these. */
export async function unseal(text, secret, nowMs = Date.now(), skewMs = LIMITS.skewMs) {
  const seal = parseSeal(text);
  if (seal.expiresMs !== null && seal.expiresMs <= nowMs - skewMs) throw new SealError("expired", "an expired seal");
  const [encryption, integrity] = await cryptoKeys(secret, seal);
  const signed = new TextEncoder().encode(seal.signed);
  if (!(await subtle().verify("HMAC", integrity, seal.mac, signed))) throw new SealError("forged", "a seal of another key, or changed");
  let plain;
  try {
    plain = await subtle().decrypt({ name: "AES-CBC", iv: seal.iv }, encryption, seal.ciphertext);
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(plain));
  } catch (error) {
    throw new SealError("malformed", "a seal of something else");
  }
}

/**
 * What is wrong with an opened envelope; empty if nothing is. A seal vouches only for itself, so whoever can give us bytes can
 * give us another topic's event, or an old one: `asked` holds what we know of it from outside.
 */
export function whatIsWrong(envelope, asked, expiresMs, nowMs, limits = LIMITS) {
  if (!envelope || typeof envelope !== "object" || typeof envelope.sealed_at !== "number") return "malformed";
  if (asked.topics && !asked.topics.includes(envelope.topic)) return "foreign_topic";
  for (const name of ["topic", "id", "event", "n"]) {
    if (asked[name] !== undefined && asked[name] !== null && asked[name] !== envelope[name]) return `other_${name}`;
  }
  const endMs = expiresMs === null ? envelope.sealed_at + limits.sealMs : expiresMs;
  if (endMs <= nowMs - limits.skewMs || envelope.sealed_at > nowMs + limits.skewMs) return "stale";
  return "";
}

/** The keys of some topics, asked for as they are needed; or a secret that opens all. */
class Keys {
  constructor(ask, topics, secret) {
    this._ask = ask; // (topics) => the relay's answer, as JSON's value
    this._topics = topics;
    this._secret = secret;
    this._known = new Map();
    this._loading = null;
    this._refreshMs = Infinity;
  }

  async find(id, nowMs) {
    if (this._secret !== undefined) return { topic: null, key: this._secret };
    if (!this._known.has(id)) await this.load(nowMs);
    const found = this._known.get(id);
    if (!found) throw new SealError("unknown_key", "a seal of a key that isn't ours");
    return found;
  }

  load(nowMs) {
    if (!this._loading) this._loading = this._load(nowMs).finally(() => (this._loading = null));
    return this._loading;
  }

  /** Gets the next key while there is time. */
  refresh(nowMs) {
    if (nowMs < this._refreshMs) return;
    this._refreshMs = Infinity;
    this.load(nowMs).catch(() => {}); // an event that needs it will ask again
  }

  async _load(nowMs) {
    const { keys } = await this._ask(this._topics);
    for (const [id, known] of this._known) if (known.until < nowMs - 2 * LIMITS.sealMs) this._known.delete(id);
    for (const { topic, id, key, until } of keys) {
      if (!this._known.has(id)) this._known.set(id, { topic, key: fromBase64Url(key), until });
    }
    const ends = [...this._known.values()].map((known) => known.until);
    const [least, most] = KEYS_EARLY_MS;
    this._refreshMs = Math.max(...ends, 0) - least - Math.random() * (most - least);
    if (!(this._refreshMs > nowMs)) this._refreshMs = Infinity; // a clock that is far off: events ask by themselves
  }
}

/** An opened envelope, checked. Throws a SealError. */
async function openSealed(text, keys, asked, nowMs, limits) {
  const { id, expiresMs } = parseSeal(text);
  const { topic, key } = await keys.find(id, nowMs);
  const envelope = await unseal(text, key, nowMs, limits.skewMs);
  const wrong = topic && topic !== envelope.topic ? "foreign_topic" : whatIsWrong(envelope, asked, expiresMs, nowMs, limits);
  if (wrong) throw new SealError(wrong, `an event that isn't what was asked for: ${wrong}`);
  return envelope.compression === undefined ? envelope : { ...envelope, data: decompress(envelope, limits) };
}

function decompress({ compression, data }, limits) {
  if (compression !== "deflate-raw") throw new SealError("malformed", `a payload compressed as ${compression}: get a newer client.js`);
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(inflate(fromBase64Url(data), limits.inflatedBytes)));
  } catch (error) {
    throw new SealError("malformed", "a payload that isn't what its compression says");
  }
}

// The lengths and distances of RFC 1951, section 3.2.5: the least of each code, and how many bits are added to it.
const LENGTH_BITS = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0];
const LENGTHS = [3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258];
const DISTANCE_BITS = Array.from({ length: 30 }, (_, code) => Math.max(0, (code >> 1) - 1));
const DISTANCES = DISTANCE_BITS.reduce((found, bits, code) => [...found, found[code] + 2 ** bits], [1]);
const LENGTH_ORDER = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/**
 * A Huffman code, by the lengths of its symbols' codes: how many there are of each, and the symbols in the order of their codes.
 * Throws a RangeError if there are more than there is room for: some would mean no symbol.
 */
function huffman(lengths) {
  const counts = new Array(16).fill(0);
  for (const length of lengths) counts[length]++;
  counts[0] = 0;
  for (let length = 1, room = 1; length < 16; length++) {
    room = 2 * room - counts[length];
    if (room < 0) throw new RangeError("deflated data with too many codes");
  }
  const next = [0];
  for (let length = 1; length < 16; length++) next[length] = next[length - 1] + counts[length - 1];
  const symbols = [];
  lengths.forEach((length, symbol) => length && (symbols[next[length]++] = symbol));
  return { counts, symbols };
}

const FIXED = [
  huffman(Array.from({ length: 288 }, (_, symbol) => (symbol < 144 ? 8 : symbol < 256 ? 9 : symbol < 280 ? 7 : 8))),
  huffman(new Array(30).fill(5)),
];

/**
 * What raw deflate holds (RFC 1951). Not by the browser's DecompressionStream, which came years after WebCrypto.
 * Throws a RangeError for what is none, or more than `most` bytes.
 */
export function inflate(bytes, most) {
  let at = 0;
  let held = 0;
  let count = 0;
  let out = new Uint8Array(Math.min(most, 4 * bytes.length + 64));
  let size = 0;

  const hold = (need) => {
    for (; count < need; count += 8) {
      if (at === bytes.length) throw new RangeError("deflated data that is cut short");
      held |= bytes[at++] << count;
    }
  };
  const take = (need) => {
    hold(need);
    const taken = held & ((1 << need) - 1);
    held >>>= need;
    count -= need;
    return taken;
  };
  // Bit by bit, as in zlib's `puff`: enough for events, and short.
  const symbol = ({ counts, symbols }) => {
    for (let length = 1, code = 0, first = 0, index = 0; length < 16; length++) {
      hold(1);
      code |= held & 1;
      held >>>= 1;
      count--;
      const found = code - first;
      if (found < counts[length]) return symbols[index + found];
      index += counts[length];
      first = (first + counts[length]) << 1;
      code <<= 1;
    }
    throw new RangeError("deflated data with a code that is none");
  };
  const put = (byte) => {
    if (size === out.length) {
      if (size >= most) throw new RangeError("deflated data of more than may be");
      const larger = new Uint8Array(Math.min(most, 2 * size));
      larger.set(out);
      out = larger;
    }
    out[size++] = byte;
  };
  const codes = () => {
    const [literals, distances, lengths] = [take(5) + 257, take(5) + 1, take(4) + 4];
    const own = new Array(19).fill(0);
    for (let index = 0; index < lengths; index++) own[LENGTH_ORDER[index]] = take(3);
    const code = huffman(own);
    const found = [];
    while (found.length < literals + distances) {
      const next = symbol(code);
      if (next === 16 && !found.length) throw new RangeError("deflated data that repeats what wasn't there");
      const [value, times] =
        next < 16 ? [next, 1] : next === 16 ? [found[found.length - 1], 3 + take(2)] : [0, next === 17 ? 3 + take(3) : 11 + take(7)];
      for (let time = 0; time < times; time++) found.push(value);
    }
    return [huffman(found.slice(0, literals)), huffman(found.slice(literals))];
  };

  for (let last = 0; !last; ) {
    last = take(1);
    const kind = take(2);
    if (kind === 0) {
      held = count = 0;
      let length = take(8) | (take(8) << 8);
      if ((take(8) | (take(8) << 8)) !== (length ^ 0xffff)) throw new RangeError("deflated data with two lengths");
      while (length--) put(take(8));
      continue;
    }
    if (kind === 3) throw new RangeError("deflated data of a kind that is none");
    const [literal, distance] = kind === 1 ? FIXED : codes();
    for (let next = symbol(literal); next !== 256; next = symbol(literal)) {
      if (next < 256) {
        put(next);
        continue;
      }
      if (next > 285) throw new RangeError("deflated data with a length that is none");
      let length = LENGTHS[next - 257] + take(LENGTH_BITS[next - 257]);
      const code = symbol(distance);
      if (code > 29) throw new RangeError("deflated data with a distance that is none");
      const back = DISTANCES[code] + take(DISTANCE_BITS[code]);
      if (!(back <= size)) throw new RangeError("deflated data that repeats what wasn't there");
      while (length--) put(out[size - back]);
    }
  }
  return out.subarray(0, size);
}

/** Ends after a while, at the signal, or when the function that `offer` gets is called. */
function pause(ms, signal, offer = () => {}) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, Math.min(ms, TIMER_MS_MAX));
    signal.addEventListener("abort", done);
    if (signal.aborted) done();
    offer(done);
  });
}

// Tokens

/** How an attempt ended, thrown from where that was found out to where it is decided upon. */
class Ending extends Error {
  constructor(outcome) {
    super(outcome.kind);
    this.outcome = outcome;
  }
}

/** Whatever fails in `promise` means that there is no answer. (fetch rejects for bad networks and for refused origins alike.) */
function answered(promise) {
  return promise.catch((error) => {
    throw new Ending({ kind: "failed", detail: String((error && error.message) || error) });
  });
}

class Token {
  constructor(given, limits) {
    this._given = given || "";
    this._limits = limits;
    this.value = undefined;
    this._renewing = null;
    this.renewMs = Infinity;
  }

  get renewable() {
    return typeof this._given === "function";
  }

  /** The token; a new one if it ends soon. */
  async get(nowMs) {
    if (this.value === undefined) await this.renew(nowMs);
    else if (nowMs >= this.renewMs) await this.renew(nowMs).catch(() => {}); // it still holds for a while
    return this.value;
  }

  /** Asks the application for one. */
  renew(nowMs) {
    if (!this._renewing) this._renewing = this._renew(nowMs).finally(() => (this._renewing = null));
    return this._renewing;
  }

  async _renew(nowMs) {
    if (this.renewMs !== Infinity) this.renewMs = nowMs + 5000; // if this fails, or brings the same one again
    const value = this.renewable ? await answered(Promise.resolve().then(this._given)) : this._given;
    const isNew = value !== this.value;
    this.value = value || "";
    const { exp, iat } = claimsOf(this.value);
    if (!this.renewable || typeof exp !== "number") this.renewMs = Infinity;
    else if (isNew) this.renewMs = exp * 1000 - Math.min(this._limits.renewMs, 200 * (exp - (iat || nowMs / 1000)));
  }

  /** What tabs may share a connection by: who the token is for. */
  get subject() {
    const { iss, sub } = claimsOf(this.value || "");
    return JSON.stringify(sub ? [iss || "", sub] : [this.value]);
  }
}

// Reading

/** One request, from its beginning to whatever ends it. */
class Attempt {
  constructor(transport) {
    this.transport = transport;
    this.beganMs = Date.now();
    this.heardMs = this.beganMs;
    this.greeted = false;
    this.heard = false; // anything after the hello
    this.retryMs = 0; // what the relay said
    this.waitS = 0; // of a long poll
    this.why = ""; // the kind of outcome, if we ended it
    this._controller = new AbortController();
    this._timers = new Map();
  }

  get signal() {
    return this._controller.signal;
  }

  leave(why) {
    if (this.why) return;
    this.why = why;
    this._controller.abort();
  }

  /** Calls `act` after a while, unless the attempt ends or this timer is set anew. */
  after(name, ms, act) {
    clearTimeout(this._timers.get(name));
    if (ms !== Infinity && !this.why) this._timers.set(name, setTimeout(act, Math.max(0, Math.min(ms, TIMER_MS_MAX))));
  }

  end() {
    this.leave("left");
    for (const timer of this._timers.values()) clearTimeout(timer);
  }
}

/**
 * Reads topics that fit one request. What comes, over whichever transport or from another tab, goes through `deliver`.
 */
class Part {
  constructor(reading, topics, cursor) {
    this.reading = reading;
    this.topics = topics;
    this.single = topics.length === 1;
    this.cursor = ["now", "earliest"].includes(cursor) ? "" : cursor;
    this._start = cursor; // where to begin, as long as there is no cursor
    this.state = "connecting";
    this.transport = "";
    this.reason = ""; // why that transport, or what it waits for
    this.why = ""; // why the transport of this attempt
    this.tabs = null;
    this.keys = new Keys((asked) => this._askForKeys(asked), topics, reading.secret);
    this._seen = new Map(); // topic: where its last event was
    this._page = null; // the unfinished one, `{cursor, ids}`: if it is left in the middle, what was delivered of it comes again
    this._askedAgain = null; // the cursor from which what couldn't be opened was asked for again
    this._health = HEALTHY;
    this._heartbeatMs = reading.limits.heartbeatMs;
    this._attempt = null;
    this._wake = null;
    this._clockMs = 0; // the relay's clock, less ours
  }

  nowMs() {
    return Date.now() + this._clockMs;
  }

  tell(state, transport, reason) {
    if (this.state === state && this.transport === transport && this.reason === reason) return;
    Object.assign(this, { state, transport, reason });
    if (this.tabs) this.tabs.tell(true);
    this.reading.changed();
  }

  /** Reads until the signal; or, to catch up, until it has read what there is. */
  async run(signal, catchUp = false) {
    const { reading } = this;
    while (!signal.aborted) {
      const [transport, why] = catchUp ? ["poll", "reads what it has missed"] : this._choose();
      this.why = why;
      if (this.state !== "open" || !transport.endsWith("poll")) this.tell("connecting", transport, why);
      const outcome = await this._try(transport, signal);
      if (signal.aborted) return;
      const step = decide(this._health, outcome, reading.limits, Math.random);
      if (step.end) return reading.end(step.end);
      this._health = step.health;
      if (outcome.greeted && outcome.livedMs > reading.limits.youngMs) reading.verdict.probes = 0;
      if (step.fall) reading.fall(step.fall);
      if (step.renew) await reading.token.renew(this.nowMs()).catch(() => {}); // it is asked for again at the next attempt
      if (outcome.kind === "page" && catchUp && !outcome.more) return;
      if (step.waitMs <= 0) continue;
      if (outcome.kind !== "page") this.tell("waiting", transport, outcome.reason || outcome.code || outcome.detail || outcome.kind);
      await this._pause(step.waitMs, step.wakes, signal);
    }
  }

  _choose() {
    const { verdict, forced, can } = this.reading;
    if (!forced && can.stream) this.probe();
    const eventSource = can.eventSource && !this.reading.hearsAnyName();
    return chooseTransport({ forced, can: { ...can, eventSource }, ...verdict, ask: this._health.ask });
  }

  async _try(transport, signal) {
    const { token } = this.reading;
    let attempt = null;
    let outcome;
    const leave = () => attempt && attempt.leave("left");
    signal.addEventListener("abort", leave);
    try {
      await token.get(this.nowMs()); // first, so that the application's time doesn't count as the relay's
      if (signal.aborted) return { kind: "left" };
      attempt = this._attempt = new Attempt(transport);
      outcome = await TRANSPORTS[transport](this, attempt);
    } catch (error) {
      if (!(error instanceof Ending)) throw error;
      outcome = error.outcome;
    } finally {
      signal.removeEventListener("abort", leave);
      this._attempt = null;
    }
    if (!attempt) return outcome;
    if (attempt.why) outcome = { kind: attempt.why };
    attempt.end();
    const { greeted, heard, retryMs, waitS } = attempt;
    return { greeted, heard, retryMs, waitS, livedMs: Date.now() - attempt.beganMs, renewable: token.renewable, ...outcome };
  }

  async _pause(ms, wakes, signal) {
    await pause(ms, signal, (wake) => (this._wake = wakes ? wake : null));
    this._wake = null;
  }

  /** Begins anew, from the cursor. */
  leave() {
    if (this._attempt) this._attempt.leave("left");
    if (this._wake) this._wake();
  }

  /** The page is looked at again. While it was hidden, its connection may have been taken away without a word. */
  suspect() {
    if (this._wake) this._wake();
    const attempt = this._attempt;
    if (!attempt || !attempt.greeted || Date.now() - attempt.heardMs < this._heartbeatMs) return;
    const { heardMs } = attempt;
    attempt.after("suspect", 1000, () => attempt.heardMs === heardMs && attempt.leave("stalled"));
  }

  /** Looks, now and then, whether streams get through again; beside the polls, so that nothing waits for it. */
  async probe() {
    const { reading } = this;
    const { verdict, limits } = reading;
    if (verdict.level === 0 || verdict.probing || Date.now() < verdict.probeAtMs) return;
    verdict.probing = true;
    const attempt = new Attempt("sse");
    let found = false;
    try {
      attempt.after("hello", limits.helloMs, () => attempt.leave("silent"));
      const answer = await this.ask("live", attempt);
      const reader = answer.status === 200 && isStream(answer) && answer.body.getReader();
      const parser = new Parser();
      while (reader && !found) {
        const { done, value } = await answered(reader.read());
        if (done) break;
        found = feed(parser, value).some((block) => block.name === "hello");
      }
    } catch (error) {
      if (!(error instanceof Ending)) throw error;
    } finally {
      attempt.end();
      verdict.probing = false;
    }
    if (!found) return reading.probeLater();
    Object.assign(verdict, { level: 0, reason: "" });
    this.leave();
  }

  // Requests

  /** Asks for a page or a stream from the cursor on. */
  async ask(door, attempt, more = {}) {
    const { reading } = this;
    const token = await reading.token.get(this.nowMs());
    const headers = { Accept: door === "live" ? "text/event-stream" : "application/json" };
    const query = this.query(more);
    if (token) {
      headers.Authorization = `Bearer ${token}`;
      // In the header, so that the URL stays the same, and with it the preflight that the browser remembers.
      if (query.cursor && query.cursor === this.cursor) {
        headers["Last-Event-ID"] = query.cursor;
        delete query.cursor;
      }
    }
    const url = requestUrl(reading.base, door, this.topics, reading.version, query);
    const how = { headers, signal: attempt.signal, credentials: reading.credentials };
    if (door === "live") how.cache = "no-store";
    return answered(fetch(url, how));
  }

  query(more) {
    const { k, events } = this.reading;
    const query = {};
    if (this.cursor) query.cursor = this.cursor;
    else if (this._start) query.cursor = this._start;
    if (!this.cursor && k) query.k = k;
    if (events) query.events = events.join(",");
    return { ...query, ...more };
  }

  async _askForKeys(topics) {
    const { reading } = this;
    const token = await reading.token.get(this.nowMs());
    const answer = await answered(askForKeys(reading.base, topics, token, reading.credentials, reading.limits));
    if (answer.status !== 200) throw new Ending(await refusal(answer));
    return answered(answer.json());
  }

  /** The relay's clock as it told it, or as an answer's header did. */
  setClock(serverMs) {
    if (serverMs) this._clockMs = serverMs - Date.now();
  }

  // What comes

  hear(attempt) {
    attempt.heardMs = Date.now();
    if (attempt.greeted) attempt.heard = true;
    if (this.tabs) this.tabs.tell(false);
    if (this.reading.version !== "v1") this.keys.refresh(this.nowMs());
  }

  /** One block of a stream. Returns an outcome if it ends with it. */
  async takeBlock(block, attempt) {
    const { reading } = this;
    if (block.retry !== undefined) attempt.retryMs = block.retry;
    if (attempt.why || block.data === undefined) return undefined;
    const read = () => {
      try {
        return JSON.parse(block.data);
      } catch (error) {
        throw new Ending({ kind: "mime", stream: true, detail: "what came is no JSON" });
      }
    };
    switch (block.name) {
      case "hello": {
        const hello = read();
        this._heartbeatMs = hello.heartbeat_s * 1000;
        this.setClock(hello.time);
        attempt.greeted = true;
        attempt.after("hello", Infinity);
        if (this._askedAgain === this.cursor) this._askedAgain = block.id;
        this.deliver(hello.resume === "reset" ? [{ reset: {} }] : [], block.id);
        this.tell("open", attempt.transport, this.why);
        return undefined;
      }
      case "gap":
        this.deliver([{ gap: read() }], block.id);
        return undefined;
      case "sync":
        this.setClock(read().time);
        this.deliver([], block.id);
        return undefined;
      case "bye": {
        const bye = read();
        if (block.id) this.deliver([], block.id);
        return { kind: "bye", reason: bye.reason, waitMs: bye.reconnect_ms };
      }
      default: {
        const told = this.single
          ? { topic: this.topics[0], id: block.id, data: reading.version === "v1" ? read() : block.data }
          : read();
        const event = await this._event({ ...told, event: block.name || "message" });
        if (!attempt.why) this.deliver(event ? [{ event }] : [], event ? block.id : "");
        return undefined;
      }
    }
  }

  /** A whole page. The cursor moves at its end alone, since an event's own id says nothing of other topics. */
  async takePage(page, attempt) {
    const gaps = Array.isArray(page.gap) ? page.gap : page.gap ? [page.gap] : [];
    const reset = page.resume === "reset";
    if (!this._page || this._page.cursor !== this.cursor) {
      this._page = { cursor: this.cursor, ids: new Set() };
      this.deliver([...(reset ? [{ reset: {} }] : []), ...gaps.map((gap) => ({ gap }))], "");
    }
    const { ids } = this._page;
    for (const told of page.events) {
      const event = await this._event(told);
      if (attempt.why) return;
      if (event) this.deliver([{ event }], "");
      if (event) ids.add(event.id);
    }
    this._page = null;
    this.deliver([], page.cursor);
  }

  /** An event as the application gets it; null for one that is refused, or that it has. */
  async _event({ topic, id, event: name, n, ts, data }) {
    const { reading } = this;
    const place = placeOf(id);
    let event = { topic, id, name, n: n === undefined && place ? place.n : n, ts: ts === undefined && place ? place.ms : ts, data };
    if (!place || !this.topics.includes(topic)) return this._refuse(event, place ? "foreign_topic" : "malformed");
    const last = this._seen.get(topic);
    if (last && !isAfter(place, last)) {
      const comesAgain = reading.version === "v1" || (this._page && this._page.ids.has(id));
      return comesAgain ? null : this._refuse(event, "old_id");
    }
    if (reading.version === "v1") return event;
    try {
      const asked = { topics: this.topics, topic, id, event: name, n: event.n };
      const envelope = await openSealed(data, this.keys, asked, this.nowMs(), reading.limits);
      event = { ...event, n: envelope.n, ts: envelope.ts, data: envelope.data };
    } catch (error) {
      if (!(error instanceof SealError)) throw error;
      // Asked for again, it is sealed anew: for one that lay about while this page slept, that is all there is to it.
      if (["expired", "stale", "forged", "unknown_key"].includes(error.reason) && this._askedAgain !== this.cursor) {
        this._askedAgain = this.cursor;
        throw new Ending({ kind: "failed", detail: error.message });
      }
      return this._refuse(event, error.reason);
    }
    return event;
  }

  _refuse({ topic, id, name, n }, reason) {
    this.reading.notice("refused", { topic, id, event: name, n, reason });
    return null;
  }

  /**
   * Takes items in order: `{event}`, `{gap}` or `{reset}`; then the cursor is behind them. The only place that moves it, that
   * knows what was seen, and that tells the application; and the tabs that read along.
   */
  deliver(items, cursor) {
    const { reading } = this;
    for (const { event, gap, reset } of items) {
      if (event) {
        const place = placeOf(event.id);
        const last = this._seen.get(event.topic);
        if (last && !isAfter(place, last)) continue;
        this._seen.set(event.topic, place);
        reading.dispatch(event);
      } else if (gap) {
        const last = this._seen.get(gap.topic);
        const oldest = placeOf(gap.oldest);
        if (!(last && oldest && !isAfter(oldest, last))) reading.notice("gap", gap);
      } else if (reset) {
        this._seen.clear();
        reading.notice("reset", { topics: this.topics });
      }
    }
    if (cursor) this.cursor = cursor;
    if (this.tabs && (items.length || cursor)) this.tabs.share(items, this.cursor);
  }
}

// Transports: each is one attempt, and returns how it ended.

function isStream(answer) {
  return /^text\/event-stream\b/i.test(answer.headers.get("content-type") || "");
}

function askForKeys(base, topics, token, credentials, limits) {
  const headers = { Accept: "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  const url = `${base}/stream/keys?${topics.map((topic) => `topic=${topic}`).join("&")}`;
  const controller = new AbortController();
  const timer = setTimeout(() => controller.abort(), limits.answerMs);
  return fetch(url, { headers, credentials, cache: "no-store", signal: controller.signal }).finally(() => clearTimeout(timer));
}

/** An answer that is none of what was asked for, as an outcome. */
async function refusal(answer) {
  const problem = await answer.json().catch(() => ({}));
  const afterMs = retryAfterMs(answer.headers.get("retry-after"), Date.now());
  return { kind: "status", status: answer.status, code: problem.code, detail: problem.detail, afterMs };
}

async function readStream(part, attempt) {
  const { limits } = part.reading;
  attempt.after("hello", limits.helloMs, () => attempt.leave("silent"));
  const answer = await part.ask("live", attempt);
  if (answer.status !== 200) return refusal(answer);
  if (!isStream(answer)) return { kind: "mime", stream: true, detail: "the answer is no event stream" };
  const parser = new Parser();
  const reader = answer.body.getReader();
  const frames = part.reading.frames && new TextDecoder();
  watchToken(part, attempt);
  for (;;) {
    const { done, value } = await reader.read().catch(() => ({ done: true }));
    if (done) return { kind: "cut" };
    part.hear(attempt);
    watchSilence(part, attempt, () => attempt.leave("stalled"));
    if (frames) part.reading.notice("frame", { transport: "sse", text: frames.decode(value, { stream: true }) });
    for (const block of feed(parser, value)) {
      const outcome = await part.takeBlock(block, attempt);
      if (outcome) return outcome;
    }
  }
}

function feed(parser, piece) {
  try {
    return parser.feed(piece);
  } catch (error) {
    throw new Ending({ kind: "mime", stream: true, detail: error.message });
  }
}

function watchSilence(part, attempt, act) {
  attempt.after("silence", part.reading.limits.silence * part._heartbeatMs, act);
}

/** A stream goes on with a new token before the old one ends. */
function watchToken(part, attempt) {
  const { token } = part.reading;
  attempt.after("token", token.renewMs - part.nowMs(), async () => {
    const old = token.value;
    await token.renew(part.nowMs()).catch(() => {});
    if (token.value !== old) attempt.leave("left");
    else watchToken(part, attempt);
  });
}

/** Looks for the way back to streams also while an answer waits. */
function watchWay(part, attempt) {
  const { verdict, forced, can } = part.reading;
  if (forced || !can.stream || verdict.level === 0) return;
  attempt.after("probe", Math.max(1000, verdict.probeAtMs - Date.now()), async () => {
    await part.probe();
    if (verdict.level === 0) attempt.leave("left");
    else watchWay(part, attempt);
  });
}

async function readPage(part, attempt, waitS) {
  const { limits, frames } = part.reading;
  attempt.waitS = waitS;
  watchWay(part, attempt);
  attempt.after("answer", waitS * 1000 + limits.answerMs, () => attempt.leave("failed"));
  const answer = await part.ask("poll", attempt, { limit: PAGE_EVENTS, ...(waitS ? { wait: waitS } : {}) });
  if (answer.status !== 200) return refusal(answer);
  part.setClock(Date.parse(answer.headers.get("date")));
  const text = await answered(answer.text());
  let page;
  try {
    page = JSON.parse(text);
  } catch (error) {
    return { kind: "mime", detail: "the answer is no JSON" };
  }
  part.hear(attempt);
  if (frames) part.reading.notice("frame", { transport: attempt.transport, text });
  await part.takePage(page, attempt);
  if (!attempt.why) part.tell("open", attempt.transport, part.why);
  const paceMs = attempt.transport === "long-poll" ? 0 : page.poll_after_ms;
  return { kind: "page", more: page.more, paceMs, empty: !page.events.length };
}

/** EventSource tells neither why it failed nor that a heartbeat came. So after a silence, a page shows whether it is dead. */
async function readEventSource(part, attempt) {
  const { reading } = part;
  attempt.after("hello", reading.limits.helloMs, () => attempt.leave("silent"));
  const query = part.query();
  const token = await ticketFor(part, attempt);
  if (token) query.token = token;
  const url = requestUrl(reading.base, "live", part.topics, reading.version, query);
  const source = new EventSource(url, { withCredentials: reading.credentials === "include" });
  watchToken(part, attempt);
  try {
    return await new Promise((resolve, reject) => {
      let taken = Promise.resolve();
      const take = (event) => {
        part.hear(attempt);
        watchSilence(part, attempt, () => checkByPage(part, attempt));
        taken = taken.then(() => part.takeBlock({ name: event.type, data: event.data, id: event.lastEventId }, attempt));
        taken.then((outcome) => outcome && resolve(outcome), reject);
      };
      for (const name of ["hello", "gap", "sync", "bye", ...reading.namesForEventSource()]) source.addEventListener(name, take);
      source.onerror = () => taken.then(() => resolve({ kind: attempt.greeted ? "cut" : "unexplained" }), () => {});
      attempt.signal.addEventListener("abort", () => resolve({ kind: "left" }));
    });
  } finally {
    source.close();
  }
}

async function checkByPage(part, attempt) {
  const answer = await part.ask("poll", attempt, { limit: 1 }).catch(() => null);
  const page = answer && answer.status === 200 && (await answer.json().catch(() => null));
  const quiet = page && !page.events.length && !page.more && page.resume === "exact";
  if (quiet) watchSilence(part, attempt, () => checkByPage(part, attempt));
  else attempt.leave("stalled"); // what the page has comes over the next stream
}

/** What may stand in a URL, where logs see it: a ticket, if the relay gives any. */
async function ticketFor(part, attempt) {
  const { base, credentials, token } = part.reading;
  const jwt = await token.get(part.nowMs());
  if (!claimsOf(jwt).sub) return jwt; // none, or a ticket already
  const how = { method: "POST", headers: { Authorization: `Bearer ${jwt}` }, signal: attempt.signal, credentials };
  const answer = await answered(fetch(`${base}/stream/ticket`, how));
  if (answer.status === 404 || answer.status === 405) return jwt;
  if (answer.status >= 300) throw new Ending(await refusal(answer));
  return (await answered(answer.json())).ticket;
}

const TRANSPORTS = {
  sse: readStream,
  "event-source": readEventSource,
  // The first answer tells where it begins, and must not wait for an event.
  "long-poll": (part, attempt) => readPage(part, attempt, part.cursor && part.state === "open" ? part.reading.limits.waitS : 0),
  poll: (part, attempt) => readPage(part, attempt, 0),
};

// Tabs

/**
 * One connection for all tabs of an origin, since browsers allow six: the tab that holds a lock reads and tells the others.
 *
 * A tab that joins listens first and then reads pages up to the log's end; what was told meanwhile is handed on after that,
 * less what the pages had. So nothing is missed, whenever the leader last spoke. The same is done whenever what is told has a
 * hole (`seq`) or comes from a new leader. A leader that says nothing for too long is frozen: another tab takes the lock away.
 * When it thaws it is told so, and joins.
 */
class Tabs {
  constructor(part, name) {
    this._part = part;
    this._name = name;
    this._me = Math.random().toString(36).slice(2);
    this._channel = null;
    this._leading = null; // an AbortController while this tab leads
    this._following = null; // the same while it follows
    this._catching = Promise.resolve(); // done once it has caught up
    this._waiting = null; // messages that came meanwhile
    this._overflown = false;
    this._dead = false; // the leader is
    this._leader = ""; // whom to believe; empty: whoever speaks next
    this._term = 0; // when the leader began to lead: messages of an earlier one are late
    this._seq = 0;
    this._heardMs = 0;
    this._checkedMs = 0;
    this._toldMs = 0;
  }

  async run(signal) {
    this._channel = new BroadcastChannel(this._name);
    this._channel.onmessage = ({ data }) => this._take(data);
    this._part.tabs = this;
    const stop = () => {
      this._stopFollowing();
      if (this._leading) this._leading.abort();
    };
    signal.addEventListener("abort", stop);
    try {
      await this._hold(signal);
    } finally {
      signal.removeEventListener("abort", stop);
      stop();
      await this._catching;
      this._part.tabs = null;
      this._channel.close();
    }
  }

  /** Holds the lock, or waits for it and follows, until the signal. */
  async _hold(signal) {
    let led = null;
    const lead = (lock) => lock && !signal.aborted && (led = this._lead());
    let how = { ifAvailable: true };
    while (!signal.aborted) {
      try {
        await navigator.locks.request(this._name, how, lead);
      } catch (error) {
        if (error.name !== "AbortError") throw error; // the lock was taken away, or isn't waited for any longer
      }
      if (this._leading) this._leading.abort();
      await led; // what took the lock away didn't end it
      this._leading = null;
      if (signal.aborted) return;
      if (this._dead) {
        this._dead = false;
        how = { steal: true };
      } else {
        this._follow();
        how = { signal: this._following.signal };
      }
    }
  }

  async _lead() {
    const leading = (this._leading = new AbortController());
    this._stopFollowing();
    await this._catching;
    Object.assign(this, { _leader: this._me, _term: Date.now(), _seq: 0 });
    this.tell(true);
    const alive = setInterval(() => this.tell(true), this._part.reading.limits.leaderMs / 8);
    await this._part.run(leading.signal).finally(() => clearInterval(alive));
  }

  get _leads() {
    return this._leading !== null && !this._leading.signal.aborted && this._leader === this._me;
  }

  share(items, cursor) {
    if (!this._leads) return;
    this._seq += 1;
    this._post({ items, cursor });
  }

  /** That this tab leads, and how it goes. */
  tell(now) {
    if (this._leads && (now || Date.now() - this._toldMs > 1000)) this._post({});
  }

  _post(more) {
    const { state, transport, reason } = this._part;
    this._toldMs = Date.now();
    this._channel.postMessage({ from: this._me, term: this._term, seq: this._seq, state, transport, reason, ...more });
  }

  // Following

  _follow() {
    if (this._following) return;
    this._following = new AbortController();
    this._heardMs = this._checkedMs = Date.now();
    this._leader = "";
    this._channel.postMessage({ who: true });
    this._catching = this._catchUp([]);
    this._timer = setInterval(() => this._check(), this._part.reading.limits.leaderMs / 8);
  }

  _stopFollowing() {
    if (this._following) this._following.abort();
    this._following = null;
    this._waiting = null;
    clearInterval(this._timer);
  }

  async _catchUp(waiting) {
    const { signal } = this._following;
    this._waiting = waiting;
    do {
      this._overflown = false;
      await this._part.run(signal, true);
    } while (this._overflown && !signal.aborted);
    if (signal.aborted) return;
    const messages = this._waiting;
    this._waiting = null;
    for (const message of messages) this._take(message);
  }

  _take(message) {
    if (message.who) return this.tell(true);
    if (!this._following || message.term < this._term) return undefined;
    this._heardMs = Date.now();
    if (this._waiting) return this._keep(message);
    const isNext = message.seq === this._seq + (message.items ? 1 : 0);
    if (this._leader && (message.from !== this._leader || !isNext)) {
      this._leader = "";
      this._catching = this._catchUp([message]);
      return undefined;
    }
    Object.assign(this, { _leader: message.from, _term: message.term, _seq: message.seq });
    if (message.items) this._part.deliver(message.items, message.cursor);
    return this._part.tell(message.state, message.transport, `${message.reason}; another tab reads`);
  }

  _keep(message) {
    this._waiting.push(message);
    if (this._waiting.length < TOLD_MAX) return;
    this._waiting = [];
    this._overflown = true;
  }

  _check() {
    const { leaderMs } = this._part.reading.limits;
    const now = Date.now();
    const slept = now - this._checkedMs > leaderMs / 2; // this tab itself
    this._checkedMs = now;
    if (slept) this.suspect();
    else if (now - this._heardMs > leaderMs) {
      this._dead = true;
      this._stopFollowing();
    }
  }

  /** Gives the leader two seconds to say something. */
  suspect() {
    if (!this._following) return;
    this._heardMs = Date.now() - this._part.reading.limits.leaderMs + 2000;
    this._channel.postMessage({ who: true });
    setTimeout(() => this._following && this._check(), 2100);
  }
}

/** What tabs may share a connection by: the same relay, version, topics and filter, and a token for the same subject. */
async function tabsName(reading, topics) {
  const subject = new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(reading.token.subject)));
  const hash = Array.from(subject.slice(0, 16), (byte) => byte.toString(16).padStart(2, "0")).join("");
  const { base, version, events } = reading;
  return ["edge-relay 1", base, version, [...topics].sort().join(), events ? [...events].sort().join() : "*", hash].join("|");
}

// Streams

/** An event of a topic, with its data as a value. */
export class RelayEvent extends Event {
  constructor(type, { topic, id, name, n, ts, data }) {
    super(type);
    Object.assign(this, { topic, id, name, n, ts, data });
  }
}

const verdicts = new Map(); // of each relay, for as long as the page lives: whether streams get through

function verdictOn(base) {
  if (!verdicts.has(base)) verdicts.set(base, { level: 0, reason: "", probes: 0, probeAtMs: 0, probing: false });
  return verdicts.get(base);
}

/** Where this module came from, if a relay served it; else the page's own origin. */
function defaultBase() {
  const served = /^(https?:.*)\/stream\/client\.js(\?.*)?$/.exec(import.meta.url);
  return served ? served[1] : typeof location === "undefined" ? "" : location.origin;
}

function readOptions(options) {
  const { url, topics } = options;
  const asked = url === undefined || topics ? { base: url === undefined ? defaultBase() : String(url).replace(/\/+$/, "") } : readUrl(url);
  if (!asked) throw new TypeError(`${url} is no URL of a stream: give a relay's URL and topics, or a stream's`);
  const given = { version: "v1", k: 0, cursor: "", ...asked };
  for (const name of Object.keys(options)) if (options[name] !== undefined) given[name] = options[name];
  given.topics = [...new Set([].concat(given.topics || []))];
  const wrong = given.topics.find((topic) => !TOPIC.test(topic));
  if (!given.topics.length || wrong !== undefined) throw new TypeError(`topics must be collection/type/id: ${wrong || "there are none"}`);
  if (!/^v[0-9]+$/.test(given.version)) throw new TypeError(`no version: ${given.version}`);
  return given;
}

/** What a stream reads, and how it goes: all that its parts share. */
class Reading {
  constructor(target, options) {
    const given = readOptions(options);
    this._target = target;
    this.limits = { ...LIMITS, ...given.limits };
    this.base = given.base;
    this.topics = given.topics;
    this.version = given.version;
    this.token = new Token(given.token, this.limits);
    this.secret = given.secret;
    this.k = given.k;
    this.events = given.events && given.events.length ? given.events : null;
    this.credentials = given.credentials || "same-origin";
    this.frames = Boolean(given.frames);
    this.verdict = verdictOn(this.base);
    this.can = {
      stream: typeof ReadableStream === "function" && "body" in Response.prototype,
      eventSource: typeof EventSource === "function",
    };
    this.forced = given.transport === "sse" && !this.can.stream ? "event-source" : given.transport || "";
    this._shares =
      given.share !== false && this.can.stream && typeof navigator === "object" && Boolean(navigator.locks) &&
      typeof BroadcastChannel === "function" && hasWebCrypto();
    this.names = new Set(); // that the application listens for
    this._cursor = given.cursor;
    this._parts = [];
    this._running = Promise.resolve();
    this._stop = null;
    this._ended = "";
    this._told = "";
    this._listeners = this._listen();
    this.start();
  }

  start() {
    if (this._ended || this._stop) return;
    const stop = (this._stop = new AbortController());
    this._running = this._running.then(() => this._run(stop.signal)).catch((error) => {
      this.end({ reason: "bug", status: 0, detail: String(error) });
      throw error; // for the console
    });
  }

  /** Lets go of connection and lock, and keeps the cursor. */
  suspend() {
    if (this._stop) this._stop.abort();
    this._stop = null;
  }

  async _run(signal) {
    if (this.version !== "v1" && !hasWebCrypto()) return this.end({ reason: "no_webcrypto", status: 0, detail: NO_WEBCRYPTO });
    if (!(await this._hasToken(signal))) return undefined;
    if (!this._parts.length) {
      const groups = splitTopics(this.topics, this.k, roomFor(this.token.value.length));
      this._parts = groups.map((topics) => new Part(this, topics, this._cursor));
    }
    return Promise.all(this._parts.map((part) => this._read(part, signal)));
  }

  async _hasToken(signal) {
    for (let health = HEALTHY; !signal.aborted; ) {
      try {
        await this.token.get(Date.now());
        return true;
      } catch (error) {
        if (!(error instanceof Ending)) throw error;
        const step = decide(health, error.outcome, this.limits, Math.random);
        health = step.health;
        await pause(step.waitMs, signal);
      }
    }
    return false;
  }

  async _read(part, signal) {
    if (this._shares && !this.forced) return new Tabs(part, await tabsName(this, part.topics)).run(signal);
    return part.run(signal);
  }

  /** Something on the way was found to be worse than it was thought. */
  fall({ level, reason }) {
    if (this.forced || level <= this.verdict.level) return;
    Object.assign(this.verdict, { level, reason });
    this.probeLater();
  }

  probeLater() {
    const { verdict, limits } = this;
    const ms = Math.min(limits.probeMaxMs, limits.probeMs * 2 ** verdict.probes);
    verdict.probes += 1;
    verdict.probeAtMs = Date.now() + ms * (0.8 + Math.random() * 0.4);
  }

  /** Whether it wants events of names that an EventSource can't be told before it hears them. */
  hearsAnyName() {
    return !this.events && (this.names.has("event") || [...this.names].every((name) => NOTICES.has(name)));
  }

  /** The names that an EventSource is told; where any are wanted and it is forced, at least that which events have by default. */
  namesForEventSource() {
    if (this.events) return this.events;
    const names = [...this.names].filter((name) => !NOTICES.has(name));
    return this.hearsAnyName() ? [...new Set([...names, "update"])] : names;
  }

  listensFor(name) {
    if (this.names.has(name)) return;
    this.names.add(name);
    if (this.transport === "event-source" && !NOTICES.has(name)) this.leave();
  }

  // The page

  _listen() {
    if (typeof window === "undefined") return [];
    const online = () => {
      this.verdict.probeAtMs = 0;
      this.leave();
    };
    const visible = () => document.visibilityState === "visible" && this._parts.forEach((part) => part.suspect());
    const listeners = [
      [window, "online", online],
      [document, "visibilitychange", visible],
      // A page that holds a connection or a lock can't be kept for the way back, and one that is frozen would keep others
      // waiting for it.
      [window, "pagehide", () => this.suspend()],
      [window, "pageshow", () => this.start()],
      [document, "freeze", () => this.suspend()],
      [document, "resume", () => this.start()],
    ];
    for (const [target, name, listener] of listeners) target.addEventListener(name, listener);
    return listeners;
  }

  leave() {
    for (const part of this._parts) part.leave();
  }

  // What the application is told

  get _worst() {
    const order = ["open", "connecting", "waiting"];
    return this._parts.reduce((worst, part) => (order.indexOf(part.state) > order.indexOf(worst.state) ? part : worst), this._parts[0]);
  }

  get state() {
    return this._ended ? "ended" : this._parts.length ? this._worst.state : "connecting";
  }

  get transport() {
    return this._parts.length ? this._worst.transport : "";
  }

  get reason() {
    return this._ended || (this._parts.length ? this._worst.reason : "");
  }

  get cursor() {
    return this._parts.length > 1 ? "" : this._parts.length ? this._parts[0].cursor : this._cursor;
  }

  changed() {
    const { state, transport, reason } = this;
    const told = JSON.stringify([state, transport, reason]);
    if (told === this._told) return;
    this._told = told;
    this.notice("state", { state, transport, reason });
  }

  notice(name, detail) {
    this._target.dispatchEvent(new CustomEvent(name, { detail }));
  }

  dispatch(event) {
    if (!NOTICES.has(event.name)) this._target.dispatchEvent(new RelayEvent(event.name, event));
    this._target.dispatchEvent(new RelayEvent("event", event));
  }

  end(detail) {
    if (this.close(detail.reason)) this.notice("end", detail);
  }

  /** Whether it wasn't already. */
  close(reason) {
    if (this._ended) return false;
    this._ended = reason;
    this.suspend();
    for (const [target, name, listener] of this._listeners) target.removeEventListener(name, listener);
    this.changed();
    return true;
  }
}

export class RelayStream extends EventTarget {
  constructor(options) {
    super();
    this._reading = new Reading(this, options);
  }

  addEventListener(name, ...more) {
    super.addEventListener(name, ...more);
    this._reading.listensFor(name);
  }

  get state() {
    return this._reading.state;
  }

  get transport() {
    return this._reading.transport;
  }

  get reason() {
    return this._reading.reason;
  }

  get cursor() {
    return this._reading.cursor;
  }

  /** Leaves the connection, and makes a new one at once. */
  reconnect() {
    this._reading.leave();
  }

  close() {
    this._reading.close("closed");
  }
}

// For a native EventSource

let opener = null;

/** Says what `decryptData` opens: the events of a URL or of topics, with keys that this token may have; or with a secret. */
export function openWith(options) {
  opener = new Opener(options);
}

/** Opens `event.data` of a v2 stream, checks it, and gives the payload alone. Answers come in the order of the calls. */
export function decryptData(text) {
  if (!opener) return Promise.reject(new Error("call openWith({ url, token }) first: it says whose keys open this"));
  return opener.open(text);
}

class Opener {
  constructor(options) {
    const { base, topics, token, secret, credentials } = options.secret && !options.url && !options.topics ? options : readOptions(options);
    this._topics = topics;
    this._clockMs = 0;
    this._token = new Token(token, LIMITS);
    this._keys = new Keys((asked) => this._ask(base, asked, credentials || "same-origin"), topics, secret);
    this._last = Promise.resolve();
  }

  open(text) {
    const opened = this._last.then(() => this._open(text));
    this._last = opened.catch(() => {});
    return opened;
  }

  async _open(text) {
    // On several topics the seal is in a wrapper, which says what it is of.
    const told = /^\s*\{/.test(text) ? JSON.parse(text) : { data: text };
    const nowMs = Date.now() + this._clockMs;
    const asked = { topics: this._topics, topic: told.topic, id: told.id, n: told.n };
    return (await openSealed(told.data, this._keys, asked, nowMs, LIMITS)).data;
  }

  async _ask(base, topics, credentials) {
    for (let tries = 0; ; tries++) {
      const token = await this._token.get(Date.now() + this._clockMs);
      const answer = await askForKeys(base, topics, token, credentials, LIMITS);
      const told = Date.parse(answer.headers.get("date"));
      if (told) this._clockMs = told - Date.now();
      if (answer.status === 200) return answer.json();
      const { code, detail } = await refusal(answer);
      if (answer.status !== 401 || !this._token.renewable || tries) throw new Error(`no keys: ${detail || code || answer.status}`);
      await this._token.renew(Date.now());
    }
  }
}
