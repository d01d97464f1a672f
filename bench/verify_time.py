"""How long `segpipe bundle verify` takes for each shipped bundle, beside what stock MONAI takes to start and to run it.

Processor seconds, which a busy machine changes little: static checks alone, with the replay in its isolated process,
`import monai`, and `python -m monai.bundle run` on the golden images.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RUNS = 3
BUNDLES = Path(__file__).resolve().parents[1] / "bundles"


def processor_seconds(command: list[str]) -> float:
    """Median of the processor time of a command and of what it starts, in one thread."""
    times = []
    for _ in range(RUNS):
        before = os.times()
        subprocess.run(
            command,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return statistics.median(times)


def main(bundles: list[Path]) -> None:
    """Print the times of each bundle and their ratios."""
    segpipe = str(Path(sys.executable).with_name("segpipe"))
    started = processor_seconds([sys.executable, "-c", "import monai"])
    print(f"python -c 'import monai'      {started:6.2f} s")
    for bundle in bundles:
        static = processor_seconds([segpipe, "bundle", "verify", str(bundle), "--no-replay"])
        whole = processor_seconds([segpipe, "bundle", "verify", str(bundle)])
        print(bundle.name)
        print(f"  verify --no-replay          {static:6.2f} s   {static / started:4.1f} times import monai")
        print(f"  verify                      {whole:6.2f} s   {whole / started:4.1f} times import monai")
        if not (bundle / "golden").is_dir():
            print("  no golden case: only the network was run")
            continue
        with tempfile.TemporaryDirectory() as out:
            stock = processor_seconds(
                [
                    sys.executable,
                    "-m",
                    "monai.bundle",
                    "run",
                    "--bundle_root",
                    str(bundle),
                    "--config_file",
                    str(bundle / "configs/inference.json"),
                    "--dataset_dir",
                    str(bundle / "golden/images"),
                    "--output_dir",
                    out,
                ]
            )
        print(f"  monai.bundle run on golden  {stock:6.2f} s   verify takes {whole / stock:.1f} times as long")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]] or sorted(BUNDLES.iterdir()))
