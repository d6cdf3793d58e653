"""`make bench`: what an exit, a handover and a session cost here, beside their floors.

    python tests/benchmarks/bench.py [--only PATTERN] [--quick]

The machine is taken as it is, shared and noisy: what is compared is measured in turns (A B A B ...)
within one run, each value is the median of the rounds, and each ratio the median of the ratios of
neighbours. Names that end in `.best` take the quietest round of each side instead. Compare ratios
between runs, not values. The table goes to standard output (tabs between
the columns when that is no terminal), progress to standard error, and all results to `bench.json`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # `tests` is a package of the checkout

    from tests.benchmarks.campaign import main

    sys.exit(main())
