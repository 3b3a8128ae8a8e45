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
