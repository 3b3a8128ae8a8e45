"""The parts of `client.js` that need no browser, run in node: one process for all tests, since to start it takes longer than they do."""

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import relay
from tests.needs import need

CLIENT = Path(relay.__file__).parent / "static/client.js"

PROGRAM = """
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
const client = await import("data:text/javascript;base64," + readFileSync(process.argv[1]).toString("base64"));
for await (const line of createInterface({ input: process.stdin })) {
  const [script, given] = JSON.parse(line);
  let answer;
  try {
    answer = { value: await new Function("client", "given", `return (async () => { ${script} })()`)(client, given) ?? null };
  } catch (error) {
    answer = { error: String(error.stack).replace(/data:[^:]*/g, "client.js") };
  }
  process.stdout.write(JSON.stringify(answer) + "\\n");
}
"""


@cache
def process() -> "subprocess.Popen[str]":
    node = need("Node")
    command = [node, "--input-type=module", "-e", PROGRAM, str(CLIENT)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def stop() -> None:
    """If it was started at all."""
    if process.cache_info().currsize:
        process().communicate()  # it ends with its input
        process.cache_clear()


def run(script: str, given: object = None) -> Any:
    """What a piece of JavaScript returns that has the module as `client`, and a JSON value as `given`."""
    node = process()
    assert node.stdin
    assert node.stdout
    node.stdin.write(json.dumps([script, given]) + "\n")
    node.stdin.flush()
    answer = json.loads(node.stdout.readline())
    assert "error" not in answer, answer["error"]
    return answer["value"]
