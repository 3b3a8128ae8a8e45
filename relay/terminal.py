"""What commands do in the terminal: make a token, publish, revoke, tail. All but the first reach the log itself, not the server."""

import argparse
import asyncio
import os
import queue
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
import msgspec

from relay import framing
from relay.cursor import EARLIEST, Cursor, Place, parse_cursor, write_cursor
from relay.denial import Denial
from relay.embedded import find_url
from relay.errors import LogUnavailable, SettingsError
from relay.log import Bounds, Log, open_log
from relay.publishing import BATCH_BYTES_MAX, BATCH_EVENTS_MAX, Publisher, PublishError
from relay.records import Records
from relay.settings import Settings, read_settings, retention_of
from relay.span import judge
from relay.topic import parse_topic

LINES_WAITING_MAX = 10_000
TAIL_WAIT_S = 5.0
TAIL_READ = Bounds(entries=500, data_bytes=1 << 20)
PAUSE_S = (0.2, 5.0)


# Tokens


def make_token(options: argparse.Namespace, settings: Settings) -> str:
    if not settings.jwt_secret:
        raise SettingsError(["RELAY_JWT_SECRET is not set: only tokens with a secret are made here, others by who has the key"])
    if not 1 <= options.ttl <= settings.jwt_max_seconds:
        raise SettingsError([f"--ttl {options.ttl} is not from 1 to RELAY_JWT_MAX_SECONDS={settings.jwt_max_seconds}"])
    now = int(time.time())
    claims: dict[str, Any] = {"sub": options.sub, "iat": now, "exp": now + options.ttl}
    if settings.jwt_issuer:
        claims["iss"] = settings.jwt_issuer
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience
    grants = {"subscribe": options.subscribe, "publish": options.publish, "admin": options.admin}
    set_claim(claims, settings.jwt_grants_claim, {name: values for name, values in grants.items() if values})
    status = "inactive" if options.inactive else "active"
    set_claim(claims, settings.jwt_subscription_claim, {"status": status})
    return jwt.encode(claims, settings.jwt_secret[0].key, "HS256")


def set_claim(claims: dict[str, Any], name: str, value: object) -> None:
    """Sets a claim by its name, or by a JSON Pointer to where it belongs."""
    *way, last = name[1:].split("/") if name.startswith("/") else [name]
    for part in way:
        claims = claims.setdefault(unescaped(part), {})
    claims[unescaped(last)] = value


def unescaped(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")


# Publishing


async def publish(options: argparse.Namespace) -> int:
    async with Publisher() as publisher:
        if options.data is not None:
            raw = msgspec.Raw(os.fsencode(options.data))  # the bytes that the shell gave, whatever they are
            appended = await publisher.publish(options.topic, raw, event=options.event, key=options.key)
            event = appended.event
            answer = {
                "id": event.cursor(appended.shard),
                "topic": event.topic,
                "n": event.n,
                "duplicate": appended.duplicate,
            }
            print(msgspec.json.encode(answer).decode())
            return 0
        return await publish_lines(publisher, options.topic, options.event)


async def publish_lines(publisher: Publisher, topic: str, name: str) -> int:
    """Standard input, line by line, in batches of what is there: a slow writer's lines go out at once."""
    lines: queue.Queue[bytes | None] = queue.Queue(LINES_WAITING_MAX)
    threading.Thread(target=read_lines, args=(lines,), daemon=True).start()
    done, number = 0, 0
    try:
        for batch in batches(lines):
            numbered = [(number + index + 1, line) for index, line in enumerate(batch)]
            number += len(batch)
            events = [(topic, msgspec.Raw(line), name, None) for _, line in numbered if line.strip()]
            try:
                done += len(await publisher.publish_many(events))
            except PublishError as error:
                bad = await first_bad(publisher, numbered, topic, name)
                done += bad[1]
                print(f"relay: line {bad[0]}: {error}; {done} events before it were published", file=sys.stderr)
                return 1
    except LogUnavailable as error:
        print(f"relay: the log is away after {done} events: {error}", file=sys.stderr)
        return 1
    print(f"published {done} events", file=sys.stderr)
    return 0


async def first_bad(publisher: Publisher, numbered: list[tuple[int, bytes]], topic: str, name: str) -> tuple[int, int]:
    """Publishes the lines before the first bad one. Returns its number, and how many those were."""
    done = 0
    for number, line in numbered:
        if not line.strip():
            continue
        try:
            await publisher.publish(topic, msgspec.Raw(line), event=name)
        except PublishError:
            return number, done
        done += 1
    raise AssertionError("a batch was refused, and no line of it is")


def read_lines(lines: "queue.Queue[bytes | None]") -> None:
    for line in sys.stdin.buffer:
        lines.put(line.rstrip(b"\r\n"))  # a line break isn't part of the event
    lines.put(None)


def batches(lines: "queue.Queue[bytes | None]") -> Iterator[list[bytes]]:
    line = lines.get()
    while line is not None:
        batch, size = [line], len(line)
        line = None
        while len(batch) < BATCH_EVENTS_MAX and size < BATCH_BYTES_MAX:
            try:
                line = lines.get_nowait()
            except queue.Empty:
                break
            if line is None:
                yield batch
                return
            batch.append(line)
            size += len(line)
        yield batch
        line = lines.get()


# What readers may


async def revoke(denial: Denial, *, undo: bool) -> int:
    async with open_records(read_settings(needs_key=False)) as records:
        if undo:
            await records.undo(denial)
            print(f"no longer denied: {denial.name()}")
        else:
            issued_until = await records.deny(denial)
            print(f"denied to tokens issued up to {issued_until:.0f}: {denial.name()}")
    return 0


async def set_subscription(sub: str, status: str, until: float | None) -> int:
    settings = read_settings(needs_key=False)
    if settings.subscription != "valkey":
        print(f"relay: RELAY_SUBSCRIPTION={settings.subscription} here: relays look at this only with valkey", file=sys.stderr)
    async with open_records(settings) as records:
        await records.set_subscription(sub, status, until)
    return 0


async def get_subscription(sub: str) -> int:
    async with open_records(read_settings(needs_key=False)) as records:
        found = await records.subscription(sub)
    active = found.active(time.time())
    print(msgspec.json.encode({"sub": sub, "status": found.status, "until": found.until, "active": active}).decode())
    return 0


@asynccontextmanager
async def open_records(settings: Settings) -> AsyncIterator[Records]:
    async with open_running_log(settings) as log:
        yield Records(log, settings.jwt_max_seconds)


# Tailing


async def tail(options: argparse.Namespace) -> int:
    topic = parse_topic(options.topic)
    async with open_running_log(read_settings(needs_key=False)) as log:
        place, n = await beginning(log, topic, options.cursor)
        await follow(log, topic, place, n, options)
    return 0


@asynccontextmanager
async def open_running_log(settings: Settings) -> AsyncIterator[Log]:
    """The log of the settings' Valkey, or of the relay that runs in the data directory."""
    url = settings.valkey_url or find_url(settings.data_dir)
    if not url:
        raise SettingsError([f"no relay runs in {settings.data_dir}: start `relay serve`, or set RELAY_VALKEY_URL"])
    async with open_log(url, settings.shards, retention_of(settings), settings.valkey_seconds) as log:
        await log.check_shards()
        yield log


async def beginning(log: Log, topic: str, text: str) -> tuple[Place, int | None]:
    shard = log.shard(topic)
    if text == "now":
        return (await log.read(shard, EARLIEST, [], TAIL_READ)).end, None
    cursor = Cursor({0: EARLIEST}) if text == "earliest" else parse_cursor(text)
    return EARLIEST if cursor.everywhere else cursor.places.get(shard, EARLIEST), cursor.number_on(topic)


async def follow(log: Log, topic: str, place: Place, n: int | None, options: argparse.Namespace) -> None:
    """Prints events until the count is full. What isn't an event goes to standard error."""
    shard, printed, pause = log.shard(topic), 0, PAUSE_S[0]
    while True:
        try:
            read = await log.read(shard, place, [topic], TAIL_READ)
            if read.reset:
                print("relay: the log was lost or replaced: beginning again with what it has", file=sys.stderr)
                place, n = EARLIEST, 0
                continue
            span = judge(read, n)
            for gap in span.gaps:
                lost = "an unknown number of" if gap.lost is None else gap.lost
                print(f"relay: {lost} events are no longer retained", file=sys.stderr)
            for event in span.events:
                print((framing.page_item(event, shard) if options.json else event.data).decode(), flush=True)
                printed += 1
                if printed == options.count:
                    return
            place, n, pause = span.end, span.n, PAUSE_S[0]
            if not span.more:
                await log.wait({shard: place}, [topic], TAIL_WAIT_S)
        except LogUnavailable as error:
            print(f"relay: {error}; resuming at {write_cursor({shard: place}, n, topic)}", file=sys.stderr)
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSE_S[1])
