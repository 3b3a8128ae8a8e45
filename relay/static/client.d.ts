/** Times and bounds; those that are given replace the module's own. */
export interface Limits {
  /** Without `hello` by then, streams are given up for polls. */
  helloMs: number;
  heartbeatMs: number;
  /** Heartbeats without a byte, after which a connection is dead. */
  silence: number;
  answerMs: number;
  /** How long a long poll waits. */
  waitS: number;
  heldMs: number;
  deaths: number;
  youngMs: number;
  probeMs: number;
  probeMaxMs: number;
  backoffMs: number;
  backoffMaxMs: number;
  renewMs: number;
  skewMs: number;
  sealMs: number;
  leaderMs: number;
  inflatedBytes: number;
}

export const LIMITS: Readonly<Limits>;

export type Token = string | (() => string | null | undefined | Promise<string | null | undefined>);

/** A password of 32 characters or more, or 32 bytes; or both keys apart. */
export type Secret = string | Uint8Array | { encryption: string | Uint8Array; integrity: string | Uint8Array };

export type Transport = "sse" | "event-source" | "long-poll" | "poll";

export type State = "connecting" | "open" | "waiting" | "ended";

interface Source {
  /** A stream's URL, as for EventSource; with `topics`, where the relay is. Default: where this module came from. */
  url?: string | URL;
  /** `collection/type/id` each. */
  topics?: string | readonly string[];
  /** A token, or what gives one, now and whenever it ends. None for public topics. */
  token?: Token;
  /** For fetch; `include` if the token is a cookie of another origin. Default: `same-origin`. */
  credentials?: RequestCredentials;
  /** Opens sealed events where the relay gives no keys (`RELAY_SEAL_KEYS=shared`). Not for what everybody can read, such as a page. */
  secret?: Secret;
}

export interface Options extends Source {
  /** `v1` (default) or `v2`, which is sealed. */
  version?: string;
  /** The newest k events of each topic come first, if there is no cursor. */
  k?: number;
  /** Only events of these names. */
  events?: readonly string[];
  /** Where to go on: what `cursor` was, `earliest`, or `now` (default). */
  cursor?: string;
  /** This one, whatever gets through. */
  transport?: Transport;
  /** Whether tabs of this origin share a connection, where they can. Default: true. */
  share?: boolean;
  /** Whether `frame` notices tell what comes as it comes. */
  frames?: boolean;
  limits?: Partial<Limits>;
}

/** An event of a topic, under its own name and as `event`. */
export class RelayEvent<Data = any> extends Event {
  readonly topic: string;
  readonly id: string;
  /** The event's name. */
  readonly name: string;
  /** Counts the topic's events without a hole. */
  readonly n: number | null;
  /** When it was appended, in milliseconds by the relay's clock. */
  readonly ts: number;
  readonly data: Data;
}

export interface Notices {
  state: { state: State; transport: Transport | ""; reason: string };
  /** Events of a topic are no longer retained. */
  gap: { topic: string; lost: number | null; first_n: number | null; oldest: string | null };
  /** The log was lost: drop what you have of these topics; what is retained follows. */
  reset: { topics: string[] };
  /** An event that isn't what was asked for, or can't be opened, and isn't shown. */
  refused: { topic: string; id: string; event: string; n: number | null; reason: string };
  /** It is over: the token, the subscription or the request is refused for good. */
  end: { reason: string; status: number; detail?: string };
  frame: { transport: Transport; text: string };
}

/** Events of these names come as `event` alone, since notices have them. */
export type NoticeName = keyof Notices | "event";

type Listener<E> = ((event: E) => void) | { handleEvent(event: E): void };

export class RelayStream extends EventTarget {
  constructor(options: Options);
  readonly state: State;
  readonly transport: Transport | "";
  /** Why this transport, or what it waits for; once ended, why. */
  readonly reason: string;
  /** Where to go on later; empty before the first answer, and where the topics need several requests. */
  readonly cursor: string;
  /** Leaves the connection, and makes a new one. */
  reconnect(): void;
  close(): void;
  addEventListener<N extends keyof Notices>(
    name: N,
    listener: Listener<CustomEvent<Notices[N]>> | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener<Data = any>(name: string, listener: Listener<RelayEvent<Data>> | null, options?: boolean | AddEventListenerOptions): void;
}

/** Says what `decryptData` opens: the events of a URL or of topics, with keys that this token may have; or with a secret. */
export function openWith(options: Source): void;

/** Opens `event.data` of a sealed stream, checks it, and gives the payload alone. Answers come in the order of the calls. */
export function decryptData<Data = any>(text: string): Promise<Data>;

/** What can't be opened, and why: `malformed`, `unknown_key`, `forged`, `expired`, `foreign_topic`, `stale`, … */
export class SealError extends Error {
  readonly reason: string;
}

/** What an Iron seal (Fe26.2) holds, as JSON's value. */
export function unseal(text: string, secret: Secret, nowMs?: number, skewMs?: number): Promise<any>;

/** A block of a stream; what it lacks is undefined. */
export interface Block {
  name?: string;
  data?: string;
  id?: string;
  retry?: number;
}

/** Reads Server-Sent Events from bytes that come in pieces of any size. */
export class Parser {
  /** The blocks that this piece completes. */
  feed(piece: Uint8Array): Block[];
}
