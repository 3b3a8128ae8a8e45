/**
 * The demo and debugger page: one topic through client.js as it is, what that says of itself, and ways to make trouble.
 *
 * Tokens come behind the `#` of the URL, which no server and no log sees. They are taken out of the address bar at once, and
 * kept for this tab alone, until it is closed.
 */

import { cut, setOffline, watchRequests } from "./line.js"; // before client.js, which it gives a line that can be broken
import { draw, NEWEST, numberOf } from "./wheel.js";
import { reasonInWords, translate, words } from "./words.js";
import { RelayStream } from "../stream/client.js";

const STORE = "edge-relay";
const LINES_MAX = 200; // in a pane
const LINE_CHARS_MAX = 4000;
const CLOCKS_MS = 1000; // apart, and they are believed to be the same: a busy network tells no finer
const SPEAK_MS = 15000; // a new number is spoken so often at most
const TIME = { hourCycle: "h23", hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 };
const REMEMBERED = ["topic", "token", "publisher", "version", "transport"];

const $ = (id) => document.getElementById(id);
const watch = $("watch").elements;
const publish = $("publish").elements;

let stream = null;
let forced = false; // to poll
let numbers = []; // newest first
let count, gaps, lost;
let clockMs = 0; // the relay's clock, less ours
let sinceMs = 0; // by the relay's clock: what is older had been there before
let latencyMs = null;
let spokenMs = 0;
const panes = { events: [], frames: [] }; // lines that are not shown yet
let painting = false;

// What is asked for

function remembered() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
  const stored = JSON.parse(sessionStorage.getItem(STORE) ?? "{}");
  return { topic: "rounds/ROULETTE/123", version: "v1", transport: "auto", ...stored, ...given };
}

function begin() {
  for (const [name, value] of Object.entries(remembered())) if (REMEMBERED.includes(name) && value) field(name).value = value;
  remember();
  if (watch.token.value) connect();
  else disconnect();
}

function field(name) {
  return name === "publisher" ? publish.publisher : watch[name];
}

function remember() {
  sessionStorage.setItem(STORE, JSON.stringify(Object.fromEntries(REMEMBERED.map((name) => [name, field(name).value]))));
}

// The stream

function connect(cursor = "") {
  leave();
  remember();
  const transport = forced ? "poll" : watch.transport.value;
  try {
    stream = new RelayStream({
      topics: [watch.topic.value.trim()],
      version: watch.version.value,
      token: watch.token.value.trim(),
      k: NEWEST,
      cursor,
      transport: transport === "auto" ? undefined : transport,
      share: false, // this tab's own connection is what is looked at
      frames: true,
    });
  } catch (error) {
    disconnect();
    watch.topic.setCustomValidity(error.message);
    watch.topic.reportValidity();
    return;
  }
  if (!cursor) startOver();
  const own = stream;
  stream.addEventListener("event", ({ n, name, id, ts, data }) => took({ n, name, id, ts, data }));
  stream.addEventListener("frame", ({ detail }) => came(detail.text));
  stream.addEventListener("state", ({ detail }) => own === stream && show(detail)); // not that one which was left has ended
  stream.addEventListener("gap", ({ detail }) => {
    gaps += 1;
    lost += detail.lost ?? 0;
    note(words.gap(detail.lost));
  });
  stream.addEventListener("reset", () => {
    startOver();
    note(words.reset);
  });
  stream.addEventListener("refused", ({ detail }) => note(words.refused(detail.reason)));
  stream.addEventListener("end", ({ detail }) => {
    show({ state: "ended", transport: stream.transport, reason: detail.reason });
    if (detail.detail) line("frames", detail.detail, "note");
  });
  show(stream);
}

function leave() {
  const left = stream;
  stream = null;
  left?.close();
}

function disconnect() {
  leave();
  show({ state: "closed", transport: "", reason: "" });
}

function startOver() {
  numbers = [];
  count = gaps = lost = 0;
  latencyMs = null;
  sinceMs = Date.now() + clockMs;
  $("events").replaceChildren();
  panes.events = [];
  paint();
}

function took({ n, name, id, ts, data }) {
  count += 1;
  if (ts > sinceMs) latencyMs = Math.max(0, Date.now() + clockMs - ts);
  line("events", JSON.stringify(data), "", `${n} · ${name} · ${timeOf(ts - clockMs)} · ${id}`);
  const number = numberOf(data);
  if (!number) return;
  numbers = [number, ...numbers].slice(0, NEWEST);
  if (latencyMs !== null && Date.now() - spokenMs > SPEAK_MS) {
    spokenMs = Date.now();
    say(words.spoken(number.value, words[number.color]));
  }
}

function came(text) {
  line("frames", text.trimEnd(), "", `↓ ${timeOf(Date.now())}`);
  const hello = /^event: hello\n.*"time":(\d+)/ms.exec(text);
  if (!hello) return;
  const aheadMs = Number(hello[1]) - Date.now();
  const changedMs = (Math.abs(aheadMs) < CLOCKS_MS ? 0 : aheadMs) - clockMs;
  clockMs += changedMs;
  sinceMs += changedMs;
}

function show({ state, transport, reason }) {
  const text = words.states[state === "open" ? transport : state];
  const told = state === "ended" ? `${text}: ${reasonInWords(reason)}` : text;
  if ($("state-text").textContent !== told) say(told);
  $("state").dataset.state = state === "open" ? (transport.endsWith("poll") ? "polling" : "live") : state;
  $("state-text").textContent = told;
  $("transport").textContent = words.transports[transport] ?? "–";
  $("why").textContent = reasonInWords(reason) || "–";
  const running = Boolean(stream) && state !== "ended";
  $("disconnect").disabled = $("cut").disabled = !running;
}

// What is shown: whatever came since the last frame of the screen, at once

function line(pane, text, kind = "", head = "") {
  if (pane === "frames" && pausing()) return;
  panes[pane].push({ text: text.length > LINE_CHARS_MAX ? `${text.slice(0, LINE_CHARS_MAX)}…` : text, kind, head });
  if (panes[pane].length > LINES_MAX) panes[pane].shift();
  paint();
}

function note(text) {
  line("frames", text, "note", timeOf(Date.now()));
  say(text);
}

function paint() {
  if (painting) return;
  painting = true;
  requestAnimationFrame(() => {
    painting = false;
    draw($, numbers, words);
    $("count").textContent = count;
    $("gaps").textContent = words.lost(gaps, lost);
    $("latency").textContent = latencyMs === null ? "–" : words.ms(Math.round(latencyMs));
    $("cursor").textContent = stream?.cursor || "–";
    for (const [pane, lines] of Object.entries(panes)) {
      const list = $(pane);
      list.prepend(...lines.splice(0).reverse().map(item));
      while (list.children.length > LINES_MAX) list.lastChild.remove();
    }
  });
}

function item({ text, kind, head }) {
  const element = document.createElement("li");
  element.className = kind;
  if (head) element.append(Object.assign(document.createElement("small"), { textContent: head }));
  element.append(text);
  return element;
}

/** For screen readers. */
function say(text) {
  $("said").textContent = text;
}

function timeOf(ms) {
  return new Date(ms).toLocaleTimeString(document.documentElement.lang, TIME);
}

// Buttons

function pausing() {
  return pressed($("pause"));
}

function pressed(button) {
  return button.getAttribute("aria-pressed") === "true";
}

function onToggle(id, act) {
  $(id).addEventListener("click", () => {
    const on = !pressed($(id));
    $(id).setAttribute("aria-pressed", on);
    act(on);
  });
}

$("watch").addEventListener("submit", (event) => {
  event.preventDefault();
  connect();
});
watch.topic.addEventListener("input", () => watch.topic.setCustomValidity(""));
$("disconnect").addEventListener("click", disconnect);
$("cut").addEventListener("click", cut);
onToggle("offline", setOffline);
onToggle("force", (on) => {
  forced = on;
  if (stream) connect(stream.cursor);
});
onToggle("pause", () => {});
$("clear").addEventListener("click", () => $("frames").replaceChildren());

$("publish").addEventListener("submit", async (event) => {
  event.preventDefault();
  remember();
  $("published").textContent = await published();
});

/** Publishes what the form says, and tells how that went. */
async function published() {
  let data;
  try {
    data = JSON.parse(publish.data.value);
  } catch {
    publish.data.focus();
    return words.notJson;
  }
  const headers = { "Content-Type": "application/json", Authorization: `Bearer ${publish.publisher.value.trim()}` };
  const body = JSON.stringify({ event: publish.event.value, data });
  try {
    const answer = await fetch(`stream/${watch.topic.value.trim()}`, { method: "POST", headers, body });
    const told = await answer.json();
    return answer.ok ? words.published(told.n, told.duplicate) : words.failed(told.detail);
  } catch (error) {
    return words.failed(error.message);
  }
}

// The beginning

translate();
watchRequests((text) => line("frames", text, "up", `↑ ${timeOf(Date.now())}`));
startOver();
begin();
window.addEventListener("hashchange", () => location.hash && begin()); // another link to this page was pasted
