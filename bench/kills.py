"""Kill -9 at random moments, 20 times each way: no case is lost, none is there twice, none in part.

The slow tests of kills with more of them: processes of `segpipe predict --workers`, jobs of `segpipe submit` on this
machine, and on a local Ray of two nodes (the command, tasks, nodes) where its environment was made (`make test-ray`).
Each ends with the folder compared with that of one process, byte by byte.

    python bench/kills.py
    python bench/kills.py --kills 100
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RAY = ROOT / ".venv-ray/bin/python"
TESTS = {
    "predict --workers 2": "tests/e2e/test_two_hundred_cases.py",
    "submit --engine local": "tests/cluster/test_jobs_killed.py",
    "submit --engine ray": "tests/cluster/test_ray.py",
}


def main() -> None:
    """Run each test, and print a line of figures for it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    for way, test in TESTS.items():
        python = str(RAY) if way.endswith("ray") else sys.executable
        if not Path(python).exists():
            print(f"{way}: left out, Ray's environment is not made (make test-ray)")
            continue
        began = time.perf_counter()
        environment = {**os.environ, "KILLS": str(options.kills), "OMP_NUM_THREADS": "1"}
        words = [python, "-m", "pytest", "-m", "slow", "-k", "killed", "-s", "--timeout", "3600", test]
        ended = subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        killed = re.search(r"killed (\{.*\})", ended.stdout)
        if ended.returncode or killed is None:
            sys.exit(f"{way}: something was lost\n{ended.stdout}")
        print(json.dumps({"way": way, "killed": killed[1], "wall_s": round(time.perf_counter() - began)}), flush=True)


if __name__ == "__main__":
    main()
