"""Runs the checks and prints what they found."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from relay.canary import canary_token
from relay.checks.inside import look_inside
from relay.checks.outside import look_from_outside
from relay.finding import Finding

TOKEN_S = 600


def check_and_print(options: argparse.Namespace) -> int:
    """1 if anything is an error, else 0."""
    findings = asyncio.run(look_inside(os.environ)) if not options.outside else []
    show(findings)
    if options.url:
        token = options.token or canary_token("relay-check", TOKEN_S)
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
