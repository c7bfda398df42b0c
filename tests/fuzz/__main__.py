"""python -m tests.fuzz: altered input, counted."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

from tests.fuzz import fuzz


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="kinds of input, e.g. checkpoints")
    settings = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tally = fuzz(settings.cases, settings.seed, Path(folder), settings.only)
    for fault in tally.wrong:
        print(fault)
    print(tally)
    print(f"{'seed':32} {settings.seed}\n{'seconds':32} {time.monotonic() - start:.0f}")
    sys.exit(1 if tally.wrong else 0)


if __name__ == "__main__":
    main()
