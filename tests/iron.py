"""Iron as the packages of npm do it, run in node: all that a test asks of them in one process."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.needs import need, need_package
from tests.waiting import LIMIT_S

MODULES = Path(__file__).parent / "node_modules"
PACKAGES = ("@hapi/iron", "iron-webcrypto")

# A raw key is written {"raw": base64url}, and becomes what each package takes.
PROGRAM = """
import * as fs from "node:fs";
import Hapi from "@hapi/iron";
import * as Web from "iron-webcrypto";
const packages = { "@hapi/iron": Hapi, "iron-webcrypto": Web };
const revive = (_, value) => (typeof value?.raw == "string" ? Buffer.from(value.raw, "base64url") : value);
const jobs = JSON.parse(fs.readFileSync(0, "utf8"), revive);
const answers = [];
for (const { lib, seal, unseal, password, options } of jobs) {
  const { seal: close, unseal: open, defaults } = packages[lib];
  const all = { ...defaults, ...options };
  try {
    answers.push({ ok: unseal === undefined ? await close(seal, password, all) : await open(unseal, password, all) });
  } catch (error) {
    answers.push({ error: error.message });
  }
}
process.stdout.write(JSON.stringify(answers));
"""


def run_iron(jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each job {"lib", "seal" or "unseal", "password", "options"}: {"ok": …} or {"error": …}."""
    done = subprocess.run(
        [node(), "--input-type=module", "-e", PROGRAM],
        input=json.dumps(jobs),
        cwd=MODULES.parent,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def node() -> str:
    """The program, once it is known that the packages are there."""
    for name in PACKAGES:
        need_package(name)
    return need("Node")
