/**
 * Reads an Edge Relay from a browser. One ES module without dependencies; `client.d.ts` beside it has the types.
 */

const BLOCK_CHARS_MAX = 1 << 24; // far above what a relay sends; without it a stream that never ends a block fills the memory

/**
 * Reads Server-Sent Events from bytes that come in pieces of any size.
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
