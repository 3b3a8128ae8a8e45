"""Counts how many runs break the promise: by the rules as worded, and by each way to break one on purpose.

python -m tests.rules                 5,000 runs of each
python -m tests.rules 20000 rules     only the rules as worded
python -m tests.rules 5000 p-unread   one fault, with the shortest sequence that shows it
"""

from __future__ import annotations

import sys
from collections import Counter
from functools import partial
from multiprocessing import Pool

from .model import FAULTS
from .world import run, shown, shrink


def main() -> None:
    runs, names = int([*sys.argv, "5000"][1]), sys.argv[2:]
    with Pool() as pool:
        for name in names or ["rules", *FAULTS]:
            faults = frozenset({name} & FAULTS.keys())
            violations = pool.map(partial(run, faults=faults), range(runs), chunksize=50)
            failed = [seed for seed, violation in enumerate(violations) if violation]
            kinds = Counter(violations[seed].split(":")[0] for seed in failed).most_common()
            print(f"{name:24}{len(failed):6} of {runs}  {FAULTS.get(name, 'as worded')}", failed[:3], kinds, flush=True)
            if failed and (names or not faults):
                print(shown(min(failed[:20], key=lambda seed: len(shrink(seed, faults))), faults))


if __name__ == "__main__":
    main()
