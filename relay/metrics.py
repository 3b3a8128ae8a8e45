"""What Prometheus is told. No label comes from topics, subjects or event names, so that their number stays small.

Sources have their names from the operator.

The workers of one machine write into one directory (`PROMETHEUS_MULTIPROC_DIR`), and whichever is asked sums them up. A worker
that was killed leaves its files behind: its gauges are dropped at the next look, its counters go on counting.
"""

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from relay.event import Event
from relay.span import Gap

LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
CONTENT_TYPE = "text/plain; version=0.0.4"  # Litestar adds the charset


class Metrics:
    """Counts what happens; the observer of streams, tail, polls and publishing."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self.connections = Gauge("relay_connections", "Open streams", registry=registry, multiprocess_mode="livesum")
        self.behind = Gauge("relay_connections_behind", "Open streams that are not live", registry=registry, multiprocess_mode="livesum")
        self.waiting_polls = Gauge("relay_waiting_polls", "Polls that wait for events", registry=registry, multiprocess_mode="livesum")
        self.topics = Gauge("relay_topics", "Topics with open streams", registry=registry, multiprocess_mode="livesum")
        self.log_up = Gauge("relay_log_up", "1 while every shard's tail is connected", registry=registry, multiprocess_mode="livemin")
        self.tail_lag = Gauge(
            "relay_tail_lag_seconds",
            "Age of the newest entry when the tail read it",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.deliveries = Counter("relay_deliveries", "Events pushed to streams", registry=registry)
        self.events = Counter("relay_events", "Events that the tail read", registry=registry)
        self.seals = Counter("relay_seals", "Events sealed: once for all who read them, and anew when that is old", registry=registry)
        self.published = Counter("relay_published", "Events published here, by outcome", ["outcome"], registry=registry)
        self.polls = Counter("relay_polls", "Pages answered, by status", ["status"], registry=registry)
        self.resumes = Counter("relay_resumes", "Streams and pages begun, by verdict", ["door", "verdict"], registry=registry)
        self.gaps = Counter("relay_gaps", "Gaps told, by whether their size is known", ["known"], registry=registry)
        self.lost = Counter("relay_gap_events", "Events told as lost in gaps of known size", registry=registry)
        self.ends = Counter("relay_stream_ends", "Streams ended, by reason", ["reason"], registry=registry)
        self.refused = Counter("relay_refused", "Requests refused, by code", ["code"], registry=registry)
        self.restarts = Counter("relay_tail_restarts", "Times a tail began again at the journal's end", registry=registry)
        self.latency = Histogram(
            "relay_publish_to_socket_seconds",
            "From an event's append to its push to the sockets: the oldest event of each batch",
            registry=registry,
            buckets=LATENCY_BUCKETS_S,
        )
        self.source_looks = Counter("relay_source_looks", "Looks at a source, by outcome", ["source", "outcome"], registry=registry)
        self.source_items = Counter("relay_source_items", "Items of a source, by outcome", ["source", "outcome"], registry=registry)
        self.source_leads = Gauge(
            "relay_source_leads",
            "1 where this machine looks at the source",
            ["source"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.source_lag = Gauge(
            "relay_source_lag_seconds",
            "How long ago a look at the source went well, where this machine looks at it",
            ["source"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._counted = dict.fromkeys((self.deliveries, self.events, self.seals), 0)
        self._outcomes = {outcome: self.published.labels(outcome) for outcome in ("new", "duplicate", "reused")}

    # Observations

    def batch(self, events: Sequence[Event]) -> None:
        self.latency.observe(max(0.0, time.time() - events[0].ts / 1000))

    def appended(self, outcome: str, count: int) -> None:
        self._outcomes[outcome].inc(count)

    def restarted(self) -> None:
        self.restarts.inc()

    def resumed(self, verdict: str) -> None:
        self.resumes.labels("live", verdict).inc()

    def paged(self, verdict: str, status: int) -> None:
        self.resumes.labels("poll", verdict).inc()
        self.polls.labels(str(status)).inc()

    def gap(self, gap: Gap) -> None:
        self.gaps.labels("no" if gap.lost is None else "yes").inc()
        self.lost.inc(gap.lost or 0)

    def ended(self, reason: str) -> None:
        self.ends.labels(reason).inc()

    def source_state(self, name: str, *, leads: bool, lag_s: float) -> None:
        self.source_leads.labels(name).set(leads)
        self.source_lag.labels(name).set(lag_s)

    def totals(self, deliveries: int, events: int, seals: int) -> None:
        """Counts kept elsewhere, so that the hot path adds plain numbers."""
        for counter, total in {self.deliveries: deliveries, self.events: events, self.seals: seals}.items():
            counter.inc(total - self._counted[counter])
            self._counted[counter] = total

    # Exposition

    def render(self) -> bytes:
        if not self.directory:
            return generate_latest(self.registry)
        for path in Path(self.directory).glob("gauge_live*.db"):
            pid = re.search(r"_(\d+)\.db$", path.name)
            if pid and not is_running(int(pid[1])):
                mark_process_dead(int(pid[1]), self.directory)  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        MultiProcessCollector(registry, self.directory)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
