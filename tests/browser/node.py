"""The parts of `client.js` that need no browser, run in node."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import relay
from tests.conftest import need

CLIENT = Path(relay.__file__).parent / "static/client.js"
LIMIT_S = 30

PROGRAM = """
import * as fs from "node:fs";
const client = await import("data:text/javascript;base64," + fs.readFileSync({client}).toString("base64"));
const given = JSON.parse(fs.readFileSync(0, "utf8"));
const work = async () => {{ {script} }};
process.stdout.write(JSON.stringify((await work()) ?? null));
"""


def run(script: str, given: object = None) -> Any:
    """What a piece of JavaScript returns that has the module as `client`, and a JSON value as `given`."""
    node = need("node", shutil.which("node"))
    program = PROGRAM.format(client=json.dumps(str(CLIENT)), script=script)
    command = [node, "--input-type=module", "-e", program]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
