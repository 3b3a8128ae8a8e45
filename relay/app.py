"""Builds the app: the one place where the parts meet."""

import asyncio
import gc
import logging
import multiprocessing
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt  # noqa: F401  # which `relay.auth` would import at the first token, while streams wait
from litestar import Litestar

import relay
from fallback.keys import key_handlers
from fallback.poll import Wait, poll_handlers
from relay.admission import Admission, Beginning
from relay.answers import answer_error
from relay.coding import coding_chooser
from relay.connections import hang_up, limit_sends, limit_silence
from relay.cursor import Place
from relay.edge import Edge, Receive, Send
from relay.embedded import die_with
from relay.endpoints.live import Admitted, Refused, live_handlers
from relay.endpoints.pages import page_handlers
from relay.endpoints.publish import publish_handlers
from relay.endpoints.revoke import revoke_handlers
from relay.endpoints.status import Status, status_handlers
from relay.endpoints.ticket import ticket_handlers
from relay.entitlement import entitlement_of
from relay.errors import Problem
from relay.follow import Pace, Streams, refuse, spread
from relay.guard import Permit, guard_of, key_set_of
from relay.hub import Hub
from relay.log import Log
from relay.logs import set_up_logs
from relay.metrics import Metrics
from relay.notice import SHARD as NOTICES_SHARD
from relay.openapi import openapi_config
from relay.rates import Rates
from relay.records import Records
from relay.refusals import Refusals
from relay.settings import Settings, read_settings, retention_of, versions_of
from relay.standing import Standing
from relay.tail import Tail

if TYPE_CHECKING:
    from relay.updates.job import Job

FIRST_LOOK_S = 2.0  # the longest that a worker waits for a log that says nothing
LAST_WORDS_S = 1.0  # for what was written last to reach its client; who hasn't taken it by then is hung up on

logger = logging.getLogger("relay")


class Relay:
    """The parts of one process, joined."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.log = Log(settings.valkey_url, settings.shards, retention_of(settings), settings.valkey_seconds)
        self.versions = versions_of(settings)
        self.hub = Hub(settings.shards, self.versions)
        self.metrics = Metrics()
        connects = settings.connects_per_second
        beginning = Beginning(connects, time.monotonic) if connects else None
        self.admission = Admission(settings.max_streams, settings.max_streams_per_sub, beginning)
        pace = Pace(settings.heartbeat_seconds, settings.heartbeat_max_seconds, settings.stream_max_seconds, settings.send_seconds)
        self.refusals = Refusals(lambda code: self.metrics.refused.labels(code).inc())
        self.records = Records(self.log, settings.jwt_max_seconds)
        self.key_set = key_set_of(settings)
        self.entitlement = entitlement_of(settings, self.records)
        self.standing = Standing(self.log, self.records, self.entitlement.again, settings.subscription_recheck_seconds)
        self.streams = Streams(self.log, self.hub, pace, self.metrics, self.refusals.refused, self.standing)
        self.tails = [
            Tail(self.log, self.hub, shard, self.metrics, self.standing if shard == NOTICES_SHARD else None)
            for shard in range(settings.shards)
        ]
        self.status = Status(self.log, self.hub, self.tails, self.admission, lambda: self.streams.draining, self.versions.sealer)
        self.job = self._job(settings.sources) if settings.sources else None
        self.guard = guard_of(settings, self.standing.denials, self.entitlement.at_first, self.records.find_ticket, self.key_set)
        self.rates = Rates(self.log, settings.publish_per_second, settings.requests_per_second)
        self._waits: set[asyncio.Event] = set()  # of the polls that wait
        self._tasks: list[asyncio.Task[None]] = []

    def _job(self, path: Path) -> "Job":
        # Not at the top: a relay without sources doesn't wait for this import, a quarter of all of its own.
        from relay.updates.job import Job, job_retention

        settings = self.settings
        # A log of its own: its keys live longer, and it finds out for itself whether Valkey is away.
        log = Log(settings.valkey_url, settings.shards, job_retention(settings), settings.valkey_seconds)
        return Job(path, settings.poll_interval, log, self.metrics, settings.max_event_bytes, settings.lease_seconds)

    def app(self) -> Edge:
        settings = self.settings
        choose_coding = coding_chooser(settings.compression)
        litestar = Litestar(
            [
                *live_handlers(self.guard, self.log, self.rates, self.versions, choose_coding),
                *poll_handlers(self.guard, self.log, self.rates, self.versions, choose_coding, self.waiting, self.metrics, self.load),
                *key_handlers(self.guard, self.rates, self.versions),
                *publish_handlers(self.guard, self.log, self.rates, self.metrics, settings.max_event_bytes, settings.request_seconds),
                *ticket_handlers(self.guard, self.records, settings.request_seconds),
                *revoke_handlers(self.guard, self.records, settings.request_seconds),
                *status_handlers(self.guard, self.status, self.metrics, settings.metrics_token),
                *page_handlers(settings.demo_page, choose_coding),
            ],
            lifespan=[self.lifespan],
            exception_handlers={Exception: answer_error},
            openapi_config=openapi_config(relay.__version__),
            logging_config=None,
        )
        return Edge(litestar, self.guard, self.refusals.refused, self.run_stream)

    async def run_stream(self, stream: Any, headers: list[tuple[bytes, bytes]], receive: Receive, send: Send) -> None:
        """What an admitted reader gets; a refusal is told so that an EventSource comes back."""
        if isinstance(stream, Refused):
            self.refusals.refused(stream.problem)
            return await refuse(send, stream.problem, headers, stream)
        assert isinstance(stream, Admitted)
        try:
            with self.admission.hold(stream.who):
                await self.streams.run(stream, headers, receive, send)
        except Problem as problem:
            self.refusals.refused(problem)
            await refuse(send, problem, headers, stream)

    def load(self) -> float:
        return self.admission.held / self.admission.most

    @asynccontextmanager
    async def waiting(self, topics: Iterable[str], permit: Permit, who: str) -> AsyncIterator[Wait]:
        """Polls wait for the hub, and take a place as a stream does."""
        with self.admission.hold(who):
            event = self.hub.watch(topics)
            self._waits.add(event)
            held = self.standing.enter(permit, lambda reason: event.set())
            self.standing.review(held)

            async def wait(places: dict[int, Place], wait_s: float) -> bool:
                if not self.streams.draining:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(wait_s):
                            await event.wait()
                    event.clear()
                return not self.streams.draining

            try:
                yield wait
            finally:
                self.standing.leave(held)
                self._waits.discard(event)
                self.hub.unwatch(topics, event)

    # Life

    @asynccontextmanager
    async def lifespan(self, _: Litestar) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()

        def drain() -> None:
            if not self.streams.draining:
                self.streams.draining = True
                self._start(self.drain())

        spare_the_collector()
        restore = on_signals(lambda: loop.call_soon_threadsafe(drain))
        self._start(*(tail.run() for tail in self.tails), self.streams.beat(), self._tick(), self._limit_sends())
        self._start(self.standing.run())
        self._start(self.status.fleet.report())
        self._start(limit_silence(self.settings.port, self.settings.request_seconds))
        if self.job:
            self.job.load()
            hear_hangups(self.job.load)
        await self._first_look()
        try:
            yield
        finally:
            restore()
            if self.job:
                await self.job.stop()
                await self.job.log.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self.entitlement.close()
            if self.key_set:
                await self.key_set.close()
            await self.log.close()

    async def _first_look(self) -> None:
        """Nobody is served before the log's end and the denials are known, or before it is known that they can't be: else the first
        who ask a new worker are told to come back."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LOOK_S):
                for tail in self.tails:
                    await tail.tried.wait()

    def _start(self, *jobs: Coroutine[Any, Any, None]) -> None:
        for job in jobs:
            task = asyncio.create_task(job)
            task.add_done_callback(end_on_failure)
            self._tasks.append(task)

    async def _tick(self) -> None:
        """Once a second, what counts elsewhere goes into the metrics."""
        while True:
            hub, tails, metrics = self.hub.statistics(), [tail.statistics() for tail in self.tails], self.metrics
            metrics.connections.set(hub.readers)
            metrics.behind.set(hub.behind)
            metrics.topics.set(hub.topics)
            metrics.waiting_polls.set(self.admission.held - hub.readers)
            metrics.log_up.set(all(tail.connected for tail in tails))
            metrics.tail_lag.set(max((tail.lag_ms or 0 for tail in tails), default=0) / 1000)
            metrics.totals(hub.deliveries, hub.events, self.versions.sealer.sealed if self.versions.sealer else 0)
            self.refusals.flush()
            self.status.tick()
            if self.job:
                self.job.tick()
            await asyncio.sleep(1)

    async def drain(self) -> None:
        """The server was asked to stop, and waits for its clients: streams and polls are ended, spread over the time there is."""
        statistics, within_s = self.hub.statistics(), self.settings.drain_seconds
        logger.info("stopping: %d streams end within %g s", statistics.readers, within_s)
        ends = [self.streams.drain(within_s), self._end_waits(within_s)]
        await asyncio.gather(*ends, *([self.job.stop()] if self.job else []))
        await asyncio.sleep(LAST_WORDS_S)
        hang_up(self.settings.port)

    async def _end_waits(self, within_s: float) -> None:
        async for event in spread(list(self._waits), within_s):
            event.set()

    async def _limit_sends(self) -> None:
        # Twice the time, so that it is us who find out about a client that hangs while events come, and can say so.
        await limit_sends(self.settings.port, 2 * self.settings.send_seconds)


def on_signals(act: Callable[[], object]) -> Callable[[], None]:
    """Calls `act` at SIGTERM and SIGINT, beside whatever the server does at them.

    `signal.signal`, since the loop's own `add_signal_handler` would replace the server's. Off the main thread (tests) there
    are no signals.
    """
    try:
        before = {number: signal.signal(number, lambda *_: act()) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:
        return lambda: None

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore


def hear_hangups(act: Callable[[], None]) -> None:
    """Calls `act` at SIGHUP, which the launcher holds back until here."""
    with suppress(ValueError, RuntimeError):  # off the main thread, as above
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, act)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def spare_the_collector() -> None:
    """Streams live for hours and are freed by their count of references. Without this the cyclic collector would walk through
    all of them now and then: 160 ms at 10,000 streams, in which nothing is delivered."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def end_on_failure(task: asyncio.Task[None]) -> None:
    """A process without its tail or its clock serves nobody: it ends, and its launcher starts another."""
    if not task.cancelled() and task.exception():
        logger.critical("a task of the process failed", exc_info=task.exception())
        signal.raise_signal(signal.SIGTERM)


def end_with_launcher() -> None:
    """A worker whose launcher was killed would go on without the embedded Valkey, on a port that no other relay gets."""
    launcher = multiprocessing.parent_process()
    ask_for_signal = die_with(launcher.pid) if launcher else None
    if ask_for_signal:
        ask_for_signal()


def create_app() -> Edge:
    """What each worker of the server runs."""
    end_with_launcher()
    settings = read_settings()
    set_up_logs(settings.log_format)
    return Relay(settings).app()
