"""How the fleet is, for people; and this process, for balancers and Prometheus."""

import hmac
import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.response import Response

import relay
from relay.admission import Admission
from relay.answers import json_answer
from relay.endpoints import described
from relay.envelope import Sealer
from relay.errors import Forbidden, LogUnavailable, Unauthorized
from relay.fleet import Figures, Fleet, find_differences, kept_by, sum_up
from relay.guard import Guard, header
from relay.hub import Hub
from relay.log import Log
from relay.metrics import CONTENT_TYPE, Metrics
from relay.query import parse_fields, parse_topics
from relay.status_page import POLICY, page
from relay.tail import Tail
from relay.updates.memory import read_status

VARY = "Accept, Origin"
RATE_S = 10  # rates are means over so many seconds


class Rates:
    """Means over the last seconds, of totals that only grow. `tick` once a second."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, tuple[int, ...]]] = []

    def tick(self, *totals: int) -> None:
        self._seen = [*self._seen[-RATE_S:], (time.monotonic(), totals)]

    def per_second(self) -> list[float]:
        if len(self._seen) < 2:
            return []
        (began, first), (ended, last) = self._seen[0], self._seen[-1]
        return [round((new - old) / (ended - began), 2) for old, new in zip(first, last, strict=True)]


class Status:
    """What the status says: of this process, and of the fleet."""

    def __init__(
        self,
        log: Log,
        hub: Hub,
        tails: Sequence[Tail],
        admission: Admission,
        draining: Callable[[], bool],
        sealer: Sealer | None,
    ) -> None:
        self.log, self.hub, self.tails, self.admission, self.draining = log, hub, tails, admission, draining
        self.fingerprint = sealer.keyring.fingerprint() if sealer else ""
        self.rates = Rates()
        self.fleet = Fleet(log, self.own)
        self._started = time.monotonic()

    def tick(self) -> None:
        hub = self.hub.statistics()
        self.rates.tick(hub.events, hub.deliveries)

    def own(self) -> Figures:
        hub = self.hub.statistics()
        tails = [tail.statistics() for tail in self.tails]
        events, deliveries = self.rates.per_second() or (0.0, 0.0)
        return Figures(
            host=platform.node(),
            pid=os.getpid(),
            version=relay.__version__,
            uptime_s=round(time.monotonic() - self._started),
            connections=hub.readers,
            behind=hub.behind,
            waiting_polls=self.admission.held - hub.readers,
            topics=hub.topics,
            audiences=hub.audiences,
            events=hub.events,
            deliveries=hub.deliveries,
            events_per_s=events,
            deliveries_per_s=deliveries,
            connected=all(tail.connected for tail in tails),
            lag_ms=max((tail.lag_ms for tail in tails if tail.lag_ms is not None), default=None),
            restarts=sum(tail.restarts for tail in tails),
            draining=self.draining(),
            fingerprint=self.fingerprint,
            retention=kept_by(self.log),
        )

    def totals(self, fleet: Sequence[Figures]) -> dict[str, Any]:
        own = fleet[0]
        here = "here" if own.connected else "away"
        return {"version": own.version, "uptime_s": own.uptime_s, **sum_up(fleet), "valkey": here}

    async def details(self, fleet: Sequence[Figures]) -> dict[str, Any]:
        """What only administrators see: hosts, topics, sources, and the log's server."""
        server: dict[str, Any] | None = None
        sources: list[dict[str, Any]] | None = None
        try:
            server = await self.log.describe()
            sources = await read_status(self.log.servers)
        except LogUnavailable:
            pass
        return {
            "warnings": find_differences(fleet),
            "host": fleet[0].host,
            "pid": fleet[0].pid,
            "fingerprint": fleet[0].fingerprint,
            "fleet": fleet,
            "valkey_server": server,
            "shards": self.log.shards,
            "retention": kept_by(self.log),
            "busiest_topics": self.hub.busiest(20),
            "sources": sources,
        }

    async def retained(self, topics: Sequence[str]) -> list[dict[str, Any]] | None:
        """What the log has of topics; None while it is away."""
        now_ms = time.time() * 1000
        try:
            found = await self.log.retained(topics)
        except LogUnavailable:
            return None
        return [
            {
                "topic": one.topic,
                "events": one.events,
                "first_n": one.first and one.first.n,
                "last_n": one.last and one.last.n,
                "oldest": one.first and one.first.cursor(self.log.shard(one.topic)),
                "newest": one.last and one.last.cursor(self.log.shard(one.topic)),
                "oldest_age_ms": one.first and max(0, round(now_ms - one.first.ts)),
                "bytes": one.bytes,
            }
            for one in found
        ]


def wants_page(accept: str) -> bool:
    """Whether a person's browser asks. Programs that name no type, or any, get JSON."""
    return any(part.partition(";")[0].strip().lower() == "text/html" for part in accept.split(","))


def status_handlers(guard: Guard, status: Status, metrics: Metrics, metrics_token: str) -> list[HTTPRouteHandler]:
    @get("/stream/status", operation_class=described.STATUS)
    async def show_status(request: Request[Any, Any, Any]) -> Response[bytes]:
        scope: Any = request.scope
        guard.check_origin(scope)
        named = parse_fields(scope["query_string"]).get("topic")
        topics = parse_topics(named) if named else ()
        detailed = await guard.sees_status(scope)
        if topics and not detailed:
            raise Forbidden('what is kept of a topic is told to tokens with `admin: ["status"]`', code="status_not_granted")
        fleet = await status.fleet.all()
        told = {**status.totals(fleet), **(await status.details(fleet) if detailed else {})}
        if topics:
            told["retained"] = await status.retained(topics)
        if wants_page(header(scope, b"accept")):
            return Response(
                page(msgspec.to_builtins(told)), media_type="text/html", headers={"content-security-policy": POLICY, "vary": VARY}
            )
        return json_answer(told, headers={"vary": VARY})

    @get("/healthz", operation_class=described.HEALTH)
    async def healthz() -> Response[bytes]:
        return json_answer({"status": "alive"})

    @get("/readyz", operation_class=described.READY)
    async def readyz() -> Response[bytes]:
        """An outage of Valkey doesn't turn it red: a balancer that finds all red answers 503, which ends every EventSource."""
        here = all(tail.statistics().connected for tail in status.tails)
        ready = not status.draining()
        body = {"status": "ready" if ready else "draining", "valkey": "here" if here else "away"}
        return json_answer(body, 200 if ready else 503, None if ready else {"retry-after": "5"})

    @get("/metrics", operation_class=described.METRICS)
    async def show_metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
        given = header(request.scope, b"authorization")
        if metrics_token and not hmac.compare_digest(given.encode(), f"Bearer {metrics_token}".encode()):
            raise Unauthorized("metrics ask for their own token: RELAY_METRICS_TOKEN", code="no_token")
        return Response(metrics.render(), media_type=CONTENT_TYPE, headers={"cache-control": "no-store"})

    return [show_status, healthz, readyz, show_metrics]
