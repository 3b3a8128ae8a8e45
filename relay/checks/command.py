"""Runs the checks and prints what they found."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from relay.checks.inside import look_inside
from relay.checks.outside import look_from_outside
from relay.errors import SettingsError
from relay.fitness import Finding
from relay.settings import read_settings
from relay.terminal import make_token

TOKEN_S = 600


def check_and_print(options: argparse.Namespace) -> int:
    """1 if anything is an error, else 0."""
    findings = asyncio.run(look_inside(os.environ)) if not options.outside else []
    show(findings)
    if options.url:
        token = options.token or canary_token()
        print("looking from outside: this takes as long as two heartbeats", file=sys.stderr, flush=True)
        outside = asyncio.run(look_from_outside(options.url, token, options.origin))
        show(outside)
        findings += outside
    counted = {level: sum(finding.level == level for finding in findings) for level in ("error", "warning", "ok")}
    print(", ".join(f"{count} {level}" for level, count in counted.items()))
    return 1 if counted["error"] else 0


def show(findings: Sequence[Finding]) -> None:
    for finding in findings:
        print(f"{finding.level:8} {finding.about}: {finding.what}")
        if finding.level != "ok":
            print(f"{'':8}   why: {finding.why}\n{'':8}   fix: {finding.fix}")


def canary_token() -> str:
    canaries = {"subscribe": ["canary/**"], "publish": ["canary/**"], "admin": [], "inactive": False}
    settings = read_settings(needs_key=False)
    if not settings.jwt_secret:
        raise SettingsError(["give --token, or set RELAY_JWT_SECRET: looking from outside needs a token for canary/**"])
    return make_token(argparse.Namespace(sub="relay-check", ttl=TOKEN_S, **canaries), settings)
