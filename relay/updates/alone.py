"""`relay job`: the update job in a process of its own."""

import asyncio
import logging
import signal

from relay.embedded import find_url
from relay.errors import LogUnavailable, SettingsError
from relay.log import open_log
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
    async with open_log(url, settings.shards, job_retention(settings)) as log:
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
        await ended.wait()
        logger.info("stopping", extra=JOB)
        await job.stop()
