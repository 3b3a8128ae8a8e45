"""A function's cold start, for `coldstart`: imports a module and, if it is the polling function, answers one poll; says what it took.

Arguments: when this process was started, by the wall clock; the module.
"""

import sys
import time


def main() -> None:
    started_s, name = float(sys.argv[1]), sys.argv[2]
    for other in ("attr", "pydantic"):
        # Brought by the tests. Litestar imports what it finds of them; in a function's package they are not.
        sys.modules[other] = None  # type: ignore[assignment]
    began_s, before_s = time.time(), time.process_time()
    module = __import__(name, fromlist=["create_app"])
    imported_s, cpu_s = time.time(), time.process_time()
    if name == "fallback.app":
        poll(module.create_app())
    answered_s, all_cpu_s = time.time(), time.process_time()

    import json
    from pathlib import Path

    (most,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    told = {"import_s": imported_s - began_s, "import_cpu_s": cpu_s - before_s, "answer_s": answered_s - started_s}
    print(json.dumps({**told, "cpu_s": all_cpu_s, "memory_kb": int(most)}))


def poll(app: object) -> None:
    import asyncio
    from typing import Any

    started: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        started.append(message)

    path = "/stream/bench/load/0/v1/poll"
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http", "root_path": "",
        "path": path, "raw_path": path.encode(), "query_string": b"cursor=earliest", "headers": [], "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))  # type: ignore[operator]
    assert started[0]["status"] == 200, started


if __name__ == "__main__":
    main()
