"""Measures the relay beside something else in the same run, and prints tables in Markdown.

    python -m tests.bench fanout
    python -m tests.bench fanout memory latency --streams 2000 --servers relay,nchan

A number from another day or machine says little, since the client shares the cores with the server; a ratio of two
servers measured in turn, on the same minutes of the same machine, says more. So each benchmark has a comparator, those
that compare latencies take turns for some rounds, and the ratio is the median of the rounds' ratios.

Nothing here is asserted: lost, repeated and reordered are columns. Linux only: epoll and /proc.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FrameType

import msgspec

from relay import framing
from relay.coding import IDENTITY, gzip_coding, zstd_coding
from relay.cursor import Place
from relay.envelope import envelope
from relay.event import Event
from relay.keys import Keyring
from relay.seal import SealingKey, make_key
from tests.bench import servers
from tests.bench.servers import Server

CONNECT_S = 120.0  # for all streams to be there; some 3,000 a second is usual
DRAIN_S = 20.0  # for what was published to arrive
SETTLE_S = 1.0  # between the last connect and the first event
SOURCES = 32  # loopback addresses that the streams come from: one has 28,000 ports, also for those just closed
EVERY_MS = 10  # between two batches of the publisher
PIPELINED_EVENTS = 64  # of the publisher, sent and not answered, where a server takes no batches
HEARTBEAT_S = 15.0  # the relay's default: the time of which the idle CPU is a fair mean
QUAKES = servers.HERE.parent / "data/quakes.geojson"
WARM_EVENTS = 2  # of each topic with many readers; they fault pages in and count for nothing but their order


class Delivered(msgspec.Struct, frozen=True):
    """What load.c says."""

    streams: int
    events: int
    lost: int
    repeated: int
    reordered: int
    closed: int
    byes: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    # From the first to the last delivery measured, and their number.
    span_s: float
    measured: int
    seconds: float
    connect_s: float
    cpu_s: float
    bytes: int


class Published(msgspec.Struct, frozen=True):
    """What publish.c says; the percentiles are of the time to the answer, late is behind the schedule."""

    events: int
    requests: int
    errors: int
    unanswered: int
    seconds: float
    cpu_s: float
    p50_ms: float
    p99_ms: float
    late_p99_ms: float


class Round(msgspec.Struct, frozen=True):
    """One measurement of one server."""

    server: str
    delivered: Delivered
    published: Published
    worker_cpu_s: float
    store_cpu_s: float
    # CPU seconds a second of the worker with all streams open and no event.
    idle_cpu: float


class Options(msgspec.Struct, frozen=True):
    """What the command line may change."""

    streams: int
    # Events a second.
    rate: float
    seconds: float
    rounds: int
    servers: Sequence[str]
    connections: int
    size: int


class Bench:
    """The folders and programs that all benchmarks of a run share."""

    def __init__(self, tools: pathlib.Path) -> None:
        self.tools = tools

    @contextlib.contextmanager
    def start(self, name: str, streams: int) -> Iterator[Server]:
        """A fresh server, so that no round inherits memory or a log from another."""
        # Short, since a unix socket's path ends at 104 bytes.
        with (
            tempfile.TemporaryDirectory(prefix="rb") as folder,
            servers.SERVERS[name](self.tools, pathlib.Path(folder), streams) as server,
        ):
            yield server

    @contextlib.contextmanager
    def subscribe(
        self, server: Server, streams: int, topics: int, warmup: int, headers: Sequence[str] = ()
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A load generator whose streams are all open."""
        arguments = [
            str(self.tools / "load"),
            "--port",
            str(server.port),
            "--path",
            server.subscribe,
            "--hello",
            server.hello,
        ]
        arguments += ["--streams", str(streams), "--topics", str(topics), "--sources", str(SOURCES)]
        arguments += ["--warmup", str(warmup)]
        for header in headers:
            arguments += ["--header", header]
        load = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert load.stdout is not None
            readable, _, _ = select.select([load.stdout], [], [], CONNECT_S)
            if not readable or load.stdout.readline() != b"ready\n":
                raise servers.Missing(f"{server.name}: {streams:,} streams were not open after {CONNECT_S:.0f} s")
            yield load
        finally:
            load.kill()
            load.wait()

    def publish(self, server: Server, options: Sequence[str], limit_s: float, batch: int = 1) -> Published:
        """Publishes to the server until all is answered, or the limit is over."""
        arguments = [str(self.tools / "publish"), "--port", str(server.port), "--limit", str(limit_s), *options]
        if batch > 1 and server.batch is not None:
            arguments += ["--path", server.batch, "--batch", str(batch), "--every", str(EVERY_MS)]
        else:
            arguments += ["--path", server.publish, *(["--wrap"] if server.wraps else [])]
        for header in server.headers:
            arguments += ["--header", header]
        done = subprocess.run(arguments, stdout=subprocess.PIPE, check=True, timeout=limit_s * 2 + 15)
        return msgspec.json.decode(done.stdout, type=Published)

    def measure(
        self,
        server: Server,
        *,
        streams: int,
        events: int,
        rate: float,
        size: int,
        topics: int = 1,
        warmup: int = 0,
        batch: int = 1,
        window: int = 1,
        limit_s: float | None = None,
        idle_s: float = SETTLE_S,
    ) -> Round:
        """Opens the streams, publishes the events at the rate, and waits until they arrived."""
        with self.subscribe(server, streams, topics, warmup) as load:
            assert load.stdin is not None
            assert load.stdout is not None
            time.sleep(SETTLE_S)
            idle = servers.cpu_s(server.worker)
            time.sleep(idle_s)
            worker, store = servers.cpu_s(server.worker), servers.cpu_s(server.store)
            idle = (worker - idle) / idle_s
            options = ["--rate", str(rate), "--events", str(events), "--topics", str(topics)]
            options += ["--size", str(size), "--window", str(window)]
            published = self.publish(server, options, limit_s or events / rate * 2 + 20, batch)
            load.stdin.write(b"%d\n" % (published.events // topics))
            load.stdin.flush()
            with contextlib.suppress(subprocess.TimeoutExpired):
                load.wait(DRAIN_S)
            worker, store = servers.cpu_s(server.worker) - worker, servers.cpu_s(server.store) - store
            load.stdin.close()
            line = load.stdout.readline()
            load.wait(10)
        delivered = msgspec.json.decode(line, type=Delivered)
        return Round(server.name, delivered, published, worker, store, idle)

    def take_turns(self, options: Options, measure: Callable[[Server], Round]) -> dict[str, list[Round]]:
        """Each server once in each round."""
        rounds: dict[str, list[Round]] = {}
        for turn in range(options.rounds):
            for name in options.servers:
                with self.start(name, options.streams) as server:
                    rounds.setdefault(name, []).append(measure(server))
                done = rounds[name][-1].delivered
                progress(f"round {turn + 1} {name}: p50 {done.p50_ms:.1f} p99 {done.p99_ms:.1f} lost {done.lost}")
        return rounds


def progress(text: str) -> None:
    print(f"<!-- {text} -->", flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    print(flush=True)


def middle(rounds: Sequence[Round], value: Callable[[Round], float], form: str = "{:.1f}") -> str:
    """The median of the rounds, and their range where there are several."""
    values = [value(r) for r in rounds]
    text = form.format(statistics.median(values))
    return text if len(values) == 1 else f"{text} ({form.format(min(values))} to {form.format(max(values))})"


def integrity(rounds: Sequence[Round]) -> str:
    return " / ".join(
        f"{sum(values):,}"
        for values in (
            [r.delivered.lost for r in rounds],
            [r.delivered.repeated for r in rounds],
            [r.delivered.reordered for r in rounds],
        )
    )


def print_ratios(rounds: dict[str, list[Round]], values: dict[str, Callable[[Round], float]]) -> None:
    """The first server against each of the others, as the median of the rounds' ratios."""
    first, *others = rounds
    for other in others:
        pairs = list(zip(rounds[first], rounds[other], strict=True))
        ratios = {name: [value(a) / value(b) for a, b in pairs if value(b)] for name, value in values.items()}
        text = ", ".join(f"{name} {statistics.median(found):.2f}" for name, found in ratios.items() if found)
        print(f"{rounds[first][0].server} / {rounds[other][0].server}: {text}")
    print(flush=True)


def fanout(bench: Bench, options: Options) -> None:
    """How soon one event is with all of many readers."""
    events = int(options.rate * options.seconds) + WARM_EVENTS
    rounds = bench.take_turns(
        options,
        lambda server: bench.measure(
            server,
            streams=options.streams,
            events=events,
            rate=options.rate,
            size=options.size,
            warmup=WARM_EVENTS,
        ),
    )
    print(f"{options.streams:,} streams of one topic, {options.rate:g} events/s of {options.size} B, ", end="")
    print(f"{options.seconds:g} s, {options.rounds} rounds; ms from the publisher's request to the client's read\n")
    table(
        ["server", "p50", "p99", "max", "lost / repeated / reordered", "server CPU ms/event", "client CPU ms/event"],
        [
            [
                found[0].server,
                middle(found, lambda r: r.delivered.p50_ms),
                middle(found, lambda r: r.delivered.p99_ms),
                middle(found, lambda r: r.delivered.max_ms),
                integrity(found),
                middle(found, lambda r: (r.worker_cpu_s + r.store_cpu_s) / r.published.events * 1000),
                middle(found, lambda r: r.delivered.cpu_s / r.published.events * 1000),
            ]
            for found in rounds.values()
        ],
    )
    print_ratios(rounds, {"p50": lambda r: r.delivered.p50_ms, "p99": lambda r: r.delivered.p99_ms})


def latency(bench: Bench, options: Options) -> None:
    """How soon one event is with one reader, when nothing else happens."""
    events = int(options.rate * options.seconds)
    warmup = min(20, events // 2)
    rounds = bench.take_turns(
        options,
        lambda server: bench.measure(server, streams=options.streams, events=events, rate=options.rate, size=options.size, warmup=warmup),
    )
    print(f"{options.streams:,} stream(s), {options.rate:g} events/s of {options.size} B, one POST each; ms\n")
    table(
        ["server", "p50", "p90", "p99", "max", "POST answered p50", "lost / repeated / reordered"],
        [
            [
                found[0].server,
                middle(found, lambda r: r.delivered.p50_ms, "{:.2f}"),
                middle(found, lambda r: r.delivered.p90_ms, "{:.2f}"),
                middle(found, lambda r: r.delivered.p99_ms, "{:.2f}"),
                middle(found, lambda r: r.delivered.max_ms, "{:.2f}"),
                middle(found, lambda r: r.published.p50_ms, "{:.2f}"),
                integrity(found),
            ]
            for found in rounds.values()
        ],
    )
    print_ratios(rounds, {"p50": lambda r: r.delivered.p50_ms, "p99": lambda r: r.delivered.p99_ms})


def throughput(bench: Bench, options: Options) -> None:
    """How many deliveries a second, when events come faster than one send each can carry."""
    events = int(options.rate * options.seconds)
    rounds = bench.take_turns(
        options,
        lambda server: bench.measure(
            server,
            streams=options.streams,
            events=events,
            rate=options.rate,
            size=options.size,
            warmup=events // 100,
            batch=servers.BATCH_EVENTS_MAX,
            window=1 if server.batch else PIPELINED_EVENTS,
            limit_s=options.seconds * 2,
        ),
    )
    print(f"{options.streams:,} streams of one topic, {options.rate:g} events/s of {options.size} B wanted; ms. ", end="")
    print(f"The relay gets what is due as one batch, at most one in {EVERY_MS} ms and when the last is answered; ", end="")
    print(f"the others get one event a POST, pipelined, up to {PIPELINED_EVENTS} unanswered\n")
    table(
        [
            "server",
            "events/s taken",
            "million deliveries/s",
            "p50",
            "p99",
            "lost / repeated / reordered",
            "server CPU us/delivery",
            "client CPU us/delivery",
            "publisher late p99",
        ],
        [
            [
                found[0].server,
                middle(found, lambda r: r.published.events / r.published.seconds, "{:,.0f}"),
                middle(found, lambda r: r.delivered.measured / max(r.delivered.span_s, 1e-9) / 1e6, "{:.2f}"),
                middle(found, lambda r: r.delivered.p50_ms),
                middle(found, lambda r: r.delivered.p99_ms),
                integrity(found),
                middle(found, lambda r: (r.worker_cpu_s + r.store_cpu_s) / max(r.delivered.events, 1) * 1e6, "{:.2f}"),
                middle(found, lambda r: r.delivered.cpu_s / max(r.delivered.events, 1) * 1e6, "{:.2f}"),
                middle(found, lambda r: r.published.late_p99_ms),
            ]
            for found in rounds.values()
        ],
    )
    print_ratios(rounds, {"deliveries/s": lambda r: r.delivered.measured / max(r.delivered.span_s, 1e-9)})


def memory(bench: Bench, options: Options) -> None:
    """What an idle stream keeps in the worker's memory; the kernel's socket buffers, the same for all, aren't in it."""
    rows = []
    kilobytes: dict[str, float] = {}
    for name in options.servers:
        with bench.start(name, options.streams) as server:
            # What the first connections load and allocate once is no stream's cost.
            with bench.subscribe(server, min(100, options.streams), 1, 0):
                time.sleep(SETTLE_S)
            time.sleep(SETTLE_S)
            before = servers.memory_kb(server.worker)
            begin, cpu = time.monotonic(), servers.cpu_s(server.worker)
            with bench.subscribe(server, options.streams, 1, 0):
                connect_s, cpu = time.monotonic() - begin, servers.cpu_s(server.worker) - cpu
                time.sleep(options.seconds)
                after = servers.memory_kb(server.worker)
        kilobytes[server.name] = (after - before) / options.streams
        rows.append([server.name, f"{before / 1024:.1f}", f"{after / 1024:.1f}", f"{kilobytes[server.name]:.1f}"])
        rows[-1] += [f"{options.streams / connect_s:,.0f}", f"{cpu / options.streams * 1e6:.0f}"]
    print(f"{options.streams:,} idle streams of one topic, {options.seconds:g} s after the last connect\n")
    table(["server", "RSS before, MiB", "RSS after, MiB", "KiB a stream", "connects/s", "CPU us/connect"], rows)
    first, *others = kilobytes
    for other in others:
        print(f"{first} / {other}: {kilobytes[first] / max(kilobytes[other], 0.01):.2f}")
    print(flush=True)


def topics(bench: Bench, options: Options) -> None:
    """Whether a topic costs anything by being one of many: the same events to one of N readers as to the only one."""
    events = int(options.rate * options.seconds) // options.streams * options.streams or options.streams
    found: dict[int, list[Round]] = {options.streams: [], 1: []}
    for turn in range(options.rounds):
        for count, rounds in found.items():
            with bench.start("relay", options.streams) as server:
                rounds.append(
                    bench.measure(
                        server,
                        streams=count,
                        topics=count,
                        events=events,
                        rate=options.rate,
                        size=options.size,
                        idle_s=HEARTBEAT_S,
                    )
                )
            progress(f"round {turn + 1} {count} topics: worker {rounds[-1].worker_cpu_s:.2f} s CPU")
    print(f"{events:,} events at {options.rate:g}/s of {options.size} B, one POST each, one stream a topic; CPU, ms\n")
    table(
        [
            "topics",
            "worker CPU/event",
            "net of idle",
            "Valkey CPU/event",
            "worker CPU idle, %",
            "p50",
            "p99",
            "POST p50",
            "lost / repeated / reordered",
        ],
        [
            [
                f"{count:,}",
                middle(rounds, lambda r: r.worker_cpu_s / r.published.events * 1000, "{:.3f}"),
                middle(rounds, lambda r: net_cpu_s(r) / r.published.events * 1000, "{:.3f}"),
                middle(rounds, lambda r: r.store_cpu_s / r.published.events * 1000, "{:.3f}"),
                middle(rounds, lambda r: r.idle_cpu * 100),
                middle(rounds, lambda r: r.delivered.p50_ms, "{:.2f}"),
                middle(rounds, lambda r: r.delivered.p99_ms, "{:.2f}"),
                middle(rounds, lambda r: r.published.p50_ms, "{:.2f}"),
                integrity(rounds),
            ]
            for count, rounds in found.items()
        ],
    )
    ratios = [net_cpu_s(many) / net_cpu_s(one) for many, one in zip(found[options.streams], found[1], strict=True)]
    print(f"{options.streams:,} topics / 1 topic: worker CPU net of idle {statistics.median(ratios):.2f}\n", flush=True)


def net_cpu_s(round_: Round) -> float:
    """The worker's CPU without that of keeping the streams open: heartbeats, above all."""
    return round_.worker_cpu_s - round_.idle_cpu * round_.published.seconds


def append(bench: Bench, options: Options) -> None:
    """How many publish requests a second, with nobody reading, beside the log's own XADD without anything around it."""
    rows, rates = [], {}

    def note(name: str, done: Published, worker: float, store: float) -> None:
        rates[name] = done.events / done.seconds
        cells = [name, f"{done.requests / done.seconds:,.0f}", f"{rates[name]:,.0f}"]
        cells += [f"{done.p50_ms:.2f}", f"{done.p99_ms:.2f}"]
        cells += [f"{seconds / done.events * 1e6:.1f}" for seconds in (worker, store)]
        rows.append([*cells, str(done.errors)])

    load = ["--rate", "0", "--seconds", str(options.seconds), "--connections", str(options.connections)]
    load += ["--topics", str(options.streams), "--size", str(options.size)]
    for name in options.servers:
        with bench.start(name, options.streams) as server:
            for batch in (1, 100) if server.batch else (1,):
                bench.publish(server, [*load, "--seconds", "1"], 10, batch)
                worker, store = servers.cpu_s(server.worker), servers.cpu_s(server.store)
                done = bench.publish(server, load, options.seconds + 10, batch)
                worker, store = servers.cpu_s(server.worker) - worker, servers.cpu_s(server.store) - store
                note(server.name + (f", batches of {batch}" if batch > 1 else ""), done, worker, store)
    with tempfile.TemporaryDirectory(prefix="rb") as folder, servers.valkey(pathlib.Path(folder)) as (path, pid):
        store = servers.cpu_s(pid)
        arguments = [
            str(bench.tools / "publish"),
            "--unix",
            str(path),
            "--xadd",
            "--limit",
            str(options.seconds + 10),
            *load,
        ]
        output = subprocess.run(arguments, stdout=subprocess.PIPE, check=True, timeout=options.seconds * 2 + 40).stdout
        note("plain XADD", msgspec.json.decode(output, type=Published), 0.0, servers.cpu_s(pid) - store)
    print(f"{options.connections} connections, each with one request at a time, {options.streams} topics, ", end="")
    print(f"{options.size} B; ms to the answer, CPU us of an event\n")
    table(["server", "requests/s", "events/s", "p50", "p99", "server CPU", "Valkey CPU", "errors"], rows)
    first, *others = rates
    for other in others:
        print(f"{first} / {other}: {rates[first] / rates[other]:.2f}")
    print(flush=True)


class Cold(msgspec.Struct, frozen=True):
    """What cold.py says."""

    import_s: float
    import_cpu_s: float
    answer_s: float
    cpu_s: float
    memory_kb: int


def coldstart(bench: Bench, options: Options) -> None:
    """A function from its process's start to its first answer, beside an import of Litestar alone, which is most of it."""
    names = ("fallback.app", "litestar")
    found: dict[str, list[Cold]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="rb") as folder, servers.valkey(pathlib.Path(folder)) as (path, _):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"RELAY_JWT_SECRET": "only-for-a-benchmark-on-loopback-0123456789", "RELAY_PUBLIC_TOPICS": "bench/**"}
        environment |= {"RELAY_VALKEY_URL": f"unix://{path}", "PYTHONPATH": str(servers.ROOT), "PYTHONPYCACHEPREFIX": folder}
        for turn in range(1 + options.rounds):
            for name in names:
                arguments = [sys.executable, str(servers.HERE / "cold.py"), str(time.time()), name]
                output = subprocess.run(arguments, env=environment, stdout=subprocess.PIPE, check=True, timeout=60).stdout
                if turn:  # the first one compiles, as pip does when it installs
                    found[name].append(msgspec.json.decode(output, type=Cold))
    print("seconds, medians; memory at its most\n")
    rows = []
    for name, cold in found.items():
        cells = [
            f"{statistics.median(getattr(one, field) for one in cold):.3f}" for field in ("import_s", "import_cpu_s", "answer_s", "cpu_s")
        ]
        rows.append([name, *cells, f"{max(one.memory_kb for one in cold) / 1024:.0f} MiB"])
    table(["", "import", "import, CPU", "first answer", "all CPU", "memory"], rows)
    print(flush=True)


def sealing(bench: Bench, options: Options) -> None:
    """Sealing one event's data with a key that is kept, beside npm's packages in node, which make theirs anew each time."""
    node = shutil.which("node")
    if not node or not (servers.HERE.parent / "node_modules/@hapi/iron").exists():
        raise servers.Missing("node and npm's @hapi/iron are needed: npm ci --prefix tests")
    text = json.dumps({"pad": "x" * (options.size - len('{"pad": ""}'))})
    string = "only-for-a-benchmark-0123456789-0123456789"
    times = 1_000
    kept = {"relay, raw": SealingKey(make_key(bytes(32), "k1")), "relay, string": SealingKey(make_key(string))}
    found: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, key in kept.items():
            began = time.perf_counter()
            for _ in range(times):
                key.seal(text.encode(), 1767225600000)
            found.setdefault(name, []).append((time.perf_counter() - began) / times * 1e6)
        arguments = [node, str(servers.HERE / "seal.mjs"), text, string, str(times)]
        output = subprocess.run(arguments, cwd=servers.HERE.parent, stdout=subprocess.PIPE, check=True, timeout=120).stdout
        for name, us in json.loads(output).items():
            found.setdefault(name, []).append(us)
    print(f"{options.size} B, microseconds for each seal\n")
    table(["", "least", "median"], [[name, f"{min(us):.1f}", f"{statistics.median(us):.1f}"] for name, us in found.items()])
    ratio = statistics.median(us / other for us, other in zip(found["relay, raw"], found["@hapi/iron, raw"], strict=True))
    print(f"relay / @hapi/iron, raw key: {ratio:.2f}\n", flush=True)


def sample(size: int) -> bytes:
    """JSON of earthquakes, as a feed has them: of so many bytes or a few more."""
    rows: list[dict[str, object]] = []
    for feature in json.loads(QUAKES.read_bytes())["features"]:
        rows.append({})
        for name, value in feature["properties"].items():
            rows[-1][name] = value
            text = msgspec.json.encode(rows)
            if len(text) >= size:
                return text
    raise ValueError(f"there are fewer than {size} bytes")


def microseconds(work: Callable[[], object]) -> float:
    """The least of some rounds: what the work itself takes."""
    times = 200
    return min(timeit.repeat(work, number=times, repeat=9)) / times * 1e6


def seal_one(key: SealingKey, event: Event, compresses: bool) -> bytes:
    return key.seal(envelope(event, 0, 0, compresses=compresses))


def compression(bench: Bench, options: Options) -> None:
    """What compression saves and costs: for one event, and with many streams of one topic."""
    plain, *codings = [IDENTITY, gzip_coding(), zstd_coding()]
    keyring = Keyring(("only-for-a-benchmark-0123456789-0123456789",))
    rows = []
    for size in (200, 2_000, 20_000):
        event = Event("bench/load/0", "update", 1, Place("bench", 1767225600000, 1), (0, 0), sample(size))
        block = framing.single_block(event, 0)
        cells = [f"{len(event.data):,} B", f"{len(plain.compress(block)):,} B"]
        ways = [partial(coding.compress, block) for coding in codings]
        ways += [partial(seal_one, keyring.sealing(event.topic, 0), event, compresses) for compresses in (False, True)]
        cells += [f"{len(way()):,} B, {microseconds(way):.0f} µs" for way in ways]
        rows.append(cells)
    print("An event of JSON on a stream: bytes, and microseconds once for all who read it so\n")
    table(["JSON", "as it is", "gzip", "zstd", "sealed as it is", "compressed, then sealed"], rows)

    events = int(options.rate * options.seconds)
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(options.rounds):
        for coding in (plain, codings[0]):  # load.c sees that all have their hello, which gzip leaves as it is
            name = coding.name or "as it is"
            with bench.start("relay", options.streams) as server:
                found.setdefault(name, []).append(send_compressed(bench, server, options, coding.name or "identity", events))
    print(f"{options.streams:,} streams of one topic, {events} events of {options.size:,} B JSON at {options.rate:g}/s\n")
    table(
        ["", "bytes of an event on each stream", "server CPU ms/event"],
        [[name, *(f"{statistics.median(values):,.0f}" for values in zip(*of, strict=True))] for name, of in found.items()],
    )
    ratios = [small[1] / whole[1] for whole, small in zip(found["as it is"], found["gzip"], strict=True)]
    print(f"gzip / as it is: CPU {statistics.median(ratios):.2f}\n", flush=True)


def send_compressed(bench: Bench, server: Server, options: Options, coding: str, events: int) -> tuple[float, float]:
    """The bytes of an event on each stream, and the milliseconds of CPU that it took the server."""
    text = sample(options.size)
    headers = dict(header.split(": ", 1) for header in server.headers) | {"content-type": "application/json"}
    with bench.subscribe(server, options.streams, 1, 0, [f"Accept-Encoding: {coding}"]) as load:
        assert load.stdin is not None
        assert load.stdout is not None
        time.sleep(SETTLE_S)
        began = servers.cpu_s(server.worker)
        for _ in range(events):
            asked = urllib.request.Request(f"http://127.0.0.1:{server.port}{server.publish % 0}", b'{"data":%b}' % text, headers)
            urllib.request.urlopen(asked, timeout=CONNECT_S).close()
            time.sleep(1 / options.rate)
        time.sleep(SETTLE_S)
        took = servers.cpu_s(server.worker) - began
        load.stdin.close()
        delivered = msgspec.json.decode(load.stdout.readline(), type=Delivered)
    return delivered.bytes / options.streams / events, took / events * 1000


ALL = ("relay", "nchan", "bare")
BENCHES: dict[str, tuple[Callable[[Bench, Options], None], Options]] = {
    "fanout": (fanout, Options(10_000, 2, 10, 3, ALL, 1, 200)),
    "memory": (memory, Options(10_000, 0, 5, 1, ALL[:2], 1, 200)),
    "latency": (latency, Options(1, 50, 10, 3, ALL, 1, 200)),
    "throughput": (throughput, Options(1_000, 2_000, 10, 1, ALL, 1, 200)),
    "topics": (topics, Options(10_000, 500, 20, 1, ALL[:1], 1, 200)),
    "append": (append, Options(16, 0, 5, 1, ALL, 16, 200)),
    "seal": (sealing, Options(0, 0, 0, 5, (), 0, 200)),
    "compression": (compression, Options(10_000, 2, 10, 3, (), 1, 2_000)),
    "coldstart": (coldstart, Options(0, 0, 0, 9, (), 0, 0)),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("names", nargs="+", choices=[*BENCHES, "all"], metavar="NAME", help=", ".join([*BENCHES, "all"]))
    parser.add_argument("--streams", type=int, help="connections that read (append: topics)")
    parser.add_argument("--rate", type=float, help="events a second")
    parser.add_argument("--seconds", type=float, help="how long to publish, or to stay idle")
    parser.add_argument("--rounds", type=int, help="turns of each server")
    parser.add_argument("--servers", type=lambda text: text.split(","), help="of relay,nchan,bare; ratios are of the first")
    parser.add_argument("--connections", type=int, help="of the publisher (append)")
    parser.add_argument("--size", type=int, help="bytes of an event's data")
    arguments = vars(parser.parse_args())
    names: list[str] = arguments.pop("names")
    changed = {name: value for name, value in arguments.items() if value is not None}
    if unknown := set(changed.get("servers", [])) - set(ALL):
        parser.error(f"no server {', '.join(sorted(unknown))}; there are {', '.join(ALL)}")

    # SIGTERM as an exception, so that every `with` block ends its processes.
    signal.signal(signal.SIGTERM, end)
    print(f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="rb") as folder:
        bench = Bench(servers.compile_tools(pathlib.Path(folder)))
        for name in BENCHES if "all" in names else names:
            measure, defaults = BENCHES[name]
            print(f"### {name}\n\n{(measure.__doc__ or '').strip()}\n", flush=True)
            try:
                measure(bench, msgspec.structs.replace(defaults, **changed))
            except servers.Missing as missing:
                raise SystemExit(str(missing)) from missing


def end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
