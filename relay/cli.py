"""The command line: `relay serve`, `demo`, `token`, `publish`, `tail`, `revoke`, `subscription`, `job`, `verify`, `check`, `bench`.

Exit codes: 0 done; 1 it failed (the log is away, an event was refused); 2 wrong arguments or settings.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import relay
from relay.auth import NAME_CHARACTERS_MAX, is_name
from relay.denial import Denial
from relay.errors import LogUnavailable, Malformed, RelayError, SettingsError
from relay.event import DEFAULT_NAME
from relay.logs import set_up_logs
from relay.settings import cautions, read_settings, unknown_names

EXAMPLES = """examples:
  relay demo                                             everything, with made-up events and nothing to configure
  export RELAY_JWT_SECRET=$(openssl rand -base64 48)
  relay serve                                            http://127.0.0.1:8080, on an embedded Valkey
  relay token --sub ada --subscribe 'rounds/**'          a token for a reader
  relay publish rounds/ROULETTE/123 --data '{"n":25}'    one event
  relay publish rounds/ROULETTE/123 - < events.ndjson    one event a line, in order
  relay revoke --sub ada                                 ends ada's streams and tokens
  relay tail rounds/ROULETTE/123                         events as they come, resuming by itself
"""

CANARY_TOKEN = "may read and publish canary/**; made with RELAY_JWT_SECRET if that is set"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser()
    options = parser.parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        sys.exit(command(options))
    except SettingsError as error:
        for mistake in error.mistakes:
            print(f"relay: {mistake}", file=sys.stderr)
        sys.exit(2)
    except Malformed as error:  # a topic or a cursor among the arguments
        print(f"relay: {error}", file=sys.stderr)
        sys.exit(2)
    except LogUnavailable as error:
        print(f"relay: the log is away: {error}", file=sys.stderr)
        sys.exit(1)
    except RelayError as error:
        print(f"relay: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # `relay tail … | head` has seen enough
        # What is left to write goes nowhere, else Python tries once more at its end, fails, and says so.
        # https://docs.python.org/3/library/signal.html#note-on-sigpipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "relay",
        description="Live events for browsers, by Server-Sent Events and by polling, from one log.",
        epilog=EXAMPLES + "\nSettings come from the environment: see the README.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"relay {relay.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], help: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=help,
            description=help,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=command)
        return sub

    add(
        "serve",
        run_serve,
        "serve streams, pages and publishing",
        "RELAY_JWT_SECRET=$(openssl rand -base64 48) relay serve",
    )
    add("demo", run_demo, "all of it, with an embedded Valkey and made-up events; prints what to try", "relay demo")

    token = add(
        "token",
        run_token,
        "make a token, signed with RELAY_JWT_SECRET, and print it",
        "relay token --sub ada --subscribe 'rounds/**'",
    )
    token.add_argument("--sub", required=True, help="who it is for")
    token.add_argument("--subscribe", nargs="+", action="extend", default=[], metavar="P", help="patterns of topics to read")
    token.add_argument("--publish", nargs="+", action="extend", default=[], metavar="P", help="patterns of topics to publish to")
    token.add_argument("--admin", nargs="+", action="extend", default=[], metavar="A", help="status, revoke")
    token.add_argument("--inactive", action="store_true", help="without an active subscription")
    token.add_argument("--ttl", type=int, default=3600, metavar="S", help="seconds until it ends (default: 3600)")

    publish = add("publish", run_publish, "append events to a topic", "relay publish rounds/ROULETTE/123 --data '{\"number\":25}'")
    publish.add_argument("topic", help="collection/type/id")
    publish.add_argument("lines", nargs="?", choices=["-"], help="read standard input: each line is one event's data")
    publish.add_argument("--data", metavar="JSON", help="one event's data")
    publish.add_argument("--event", default=DEFAULT_NAME, help=f"the events' name (default: {DEFAULT_NAME})")
    publish.add_argument("--key", help="idempotency key of one event: repeating it appends nothing")

    tail = add(
        "tail",
        run_tail,
        "print a topic's events as they come; resumes by itself",
        "relay tail rounds/ROULETTE/123 --cursor earliest",
    )
    tail.add_argument("topic", help="collection/type/id")
    tail.add_argument("--cursor", default="now", help="where to begin: a cursor, now (default) or earliest")
    tail.add_argument("--count", type=int, metavar="N", help="end after N events")
    tail.add_argument("--json", action="store_true", help="print whole events with id, n and ts, not their data alone")

    revoke = add(
        "revoke",
        run_revoke,
        "deny the tokens issued so far: of a subject, one, or for topics; open streams end within a second",
        "relay revoke --topic 'rounds/ROULETTE/*' --sub ada",
    )
    revoke.add_argument("--sub", default="", help="a subject: all its tokens; with --topic, what they granted there")
    revoke.add_argument("--jti", default="", help="one token, by its jti")
    revoke.add_argument("--topic", default="", metavar="PATTERN", help="topics, for everybody or for --sub")
    revoke.add_argument("--undo", action="store_true", help="deny it no longer")

    subscription = add(
        "subscription",
        run_subscription,
        "set or show a subscription that RELAY_SUBSCRIPTION=valkey looks up; open streams see it at once",
        "relay subscription set ada --status active --until 1798000000",
    )
    actions = subscription.add_subparsers(dest="action", required=True, metavar="ACTION")
    setting = actions.add_parser("set", help="set it; without --until it has no end")
    setting.add_argument("sub", help="whose it is")
    setting.add_argument("--status", required=True, help="active, or anything else")
    setting.add_argument("--until", type=float, metavar="S", help="when it ends, as a Unix time")
    actions.add_parser("get", help="print it as JSON").add_argument("sub", help="whose it is")

    add("job", run_job, "the update job alone: watch the upstreams of RELAY_SOURCES", "RELAY_SOURCES=sources.toml relay job")

    verify = add(
        "verify",
        run_verify,
        "prove that a running relay loses, repeats and reorders nothing, with canaries on a topic of their own",
        "relay verify http://127.0.0.1:8080 --seconds 60",
    )
    verify.add_argument("url", help="the relay's public address")
    verify.add_argument("--token", help=CANARY_TOKEN)
    verify.add_argument("--seconds", type=float, default=60, help="how long to publish (default: 60)")
    verify.add_argument("--rate", type=float, default=10, help="canaries a second (default: 10)")
    verify.add_argument("--clients", type=int, default=2, help="readers of each door: live, poll, long poll (default: 2)")
    verify.add_argument("--export", type=Path, metavar="FILE", help="write the figures there too, as JSON")

    check = add(
        "check",
        run_check,
        "look for what would hurt in production, and say what to change: settings, files, port, Valkey, keys, sources, the way to a URL",
        "relay check https://relay.example.com --origin https://app.example.com",
    )
    check.add_argument("url", nargs="?", default="", help="the relay's public address, to look at the way there too")
    check.add_argument("--token", default="", help=CANARY_TOKEN)
    check.add_argument("--origin", default="", help="the origin of a page that uses the relay, as browsers send it")
    check.add_argument("--outside", action="store_true", help="look at the URL alone, not at settings and servers here")

    bench = add(
        "bench",
        run_bench,
        "open many streams of a running relay, publish, and say how soon each event was with each reader",
        "relay bench https://relay.example.com --streams 100 --rate 10",
    )
    bench.add_argument("url", help="the relay's public address")
    bench.add_argument("--token", help=CANARY_TOKEN)
    bench.add_argument("--streams", type=int, default=100, help="readers, all of one topic (default: 100)")
    bench.add_argument("--rate", type=float, default=10, help="events a second (default: 10)")
    bench.add_argument("--seconds", type=float, default=10, help="how long to publish (default: 10)")
    bench.add_argument("--size", type=int, default=200, metavar="BYTES", help="of an event's data (default: 200)")
    return parser


def run_serve(options: argparse.Namespace) -> int:
    from relay.server import serve

    settings = read_settings()
    set_up_logs(settings.log_format)
    for line in [*unknown_names(), *cautions(settings)]:
        print(f"relay: {line}", file=sys.stderr)
    serve(settings)
    return 0


def run_demo(options: argparse.Namespace) -> int:
    from relay.demo import demo

    demo()
    return 0


def run_token(options: argparse.Namespace) -> int:
    from relay.terminal import make_token

    print(make_token(options, read_settings(needs_key=True)))
    return 0


def run_publish(options: argparse.Namespace) -> int:
    from relay.terminal import publish

    if (options.data is None) == (options.lines is None):
        raise SettingsError(["publish one event with --data JSON, or the lines of standard input with -"])
    if options.lines and options.key:
        raise SettingsError(["--key is for one event: it can't be that of every line"])
    return asyncio.run(publish(options))


def run_tail(options: argparse.Namespace) -> int:
    from relay.terminal import tail

    return asyncio.run(tail(options))


def run_revoke(options: argparse.Namespace) -> int:
    from relay.terminal import revoke

    denial = Denial(options.sub, options.jti, options.topic)
    if mistake := denial.mistake():
        raise SettingsError([mistake])
    return asyncio.run(revoke(denial, undo=options.undo))


def run_subscription(options: argparse.Namespace) -> int:
    from relay.terminal import get_subscription, set_subscription

    if not is_name(options.sub):
        raise SettingsError([f"a subject has 1 to {NAME_CHARACTERS_MAX} characters"])
    if options.action == "get":
        return asyncio.run(get_subscription(options.sub))
    return asyncio.run(set_subscription(options.sub, options.status, options.until))


def run_job(options: argparse.Namespace) -> int:
    from relay.updates.alone import run_alone

    settings = read_settings(needs_key=False)
    set_up_logs(settings.log_format)
    asyncio.run(run_alone(settings))
    return 0


def run_verify(options: argparse.Namespace) -> int:
    from relay.verify import verify_and_print

    if not (0 < options.seconds <= 7 * 86400 and 0 < options.rate <= 1000 and 1 <= options.clients <= 100):
        raise SettingsError(["--seconds is above 0 up to a week, --rate up to 1000, --clients from 1 to 100"])
    return verify_and_print(options)


def run_bench(options: argparse.Namespace) -> int:
    from relay.bench import bench_and_print

    if not (1 <= options.streams <= 5000 and 0 < options.rate <= 1000 and 0 < options.seconds <= 3600 and 0 <= options.size <= 60_000):
        raise SettingsError(["--streams is from 1 to 5000, --rate above 0 up to 1000, --seconds up to 3600, --size up to 60000"])
    return bench_and_print(options)


def run_check(options: argparse.Namespace) -> int:
    from relay.checks.command import check_and_print

    if options.outside and not options.url:
        raise SettingsError(["--outside looks at a URL: name it"])
    return check_and_print(options)
