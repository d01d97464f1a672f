"""How long `segpipe --help` takes, beside `python -c pass` in the same minute."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 11
LIMIT_S = 0.6


def median_seconds(command: list[str]) -> float:
    """Median wall-clock time of a command, in seconds; the first run only warms the caches."""
    times = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> int:
    """Print both times and their ratio; 1 where the limit is passed."""
    segpipe = median_seconds([str(Path(sys.executable).with_name("segpipe")), "--help"])
    python = median_seconds([sys.executable, "-c", "pass"])
    print(f"segpipe --help  {segpipe:.3f} s  (limit {LIMIT_S} s)")
    print(f"python -c pass  {python:.3f} s")
    print(f"ratio           {segpipe / python:.1f}")
    return int(segpipe > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
