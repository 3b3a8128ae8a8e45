"""`relay job`: the update job in a process of its own."""

import asyncio
import logging
import os
import platform
import signal
import time
from functools import partial

import relay
from relay.embedded import find_url
from relay.errors import LogUnavailable, SettingsError
from relay.fleet import Figures, Fleet, kept_by
from relay.log import Log, open_log
from relay.metrics import Metrics
from relay.settings import Settings
from relay.updates.job import JOB, Job, job_retention
from relay.updates.sources import read_sources

logger = logging.getLogger("relay")


async def run_alone(settings: Settings) -> None:
    """Until a signal ends it. Raises SettingsError."""
    path = settings.sources
    if path is None:
        raise SettingsError(["RELAY_SOURCES is not set: the job needs a file that says which upstreams to watch"])
    read_sources(path, settings.poll_interval)
    url = settings.valkey_url or find_url(settings.data_dir)
    if not url:
        raise SettingsError([f"no relay runs in {settings.data_dir}: start `relay serve`, or set RELAY_VALKEY_URL or RELAY_DATA_DIR"])
    async with open_log(url, settings.shards, job_retention(settings), settings.valkey_seconds) as log:
        job = Job(path, settings.poll_interval, log, Metrics(), settings.max_event_bytes, settings.lease_seconds)
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        loop.add_signal_handler(signal.SIGHUP, job.load)
        try:
            await log.check_shards()
        except LogUnavailable as error:
            logger.warning("the log is away: %s; it is waited for", error, extra=JOB)
        job.load()
        reporting = asyncio.create_task(Fleet(log, partial(figures, log, time.monotonic())).report())
        await ended.wait()
        logger.info("stopping", extra=JOB)
        await job.stop()
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)


def figures(log: Log, began_s: float) -> Figures:
    """What the fleet is told of this process: that it is here. How its sources do is told with them."""
    uptime_s = round(time.monotonic() - began_s)
    return Figures(platform.node(), os.getpid(), relay.__version__, kind="job", uptime_s=uptime_s, connected=True, retention=kept_by(log))
