"""How far a reader of one prediction walks: functions of ours that are called, their files, how often the file changes.

Functions count once, in the order of their first call, as a profile hook sees them in every thread; a switch is a
function in another file than the one before it. The parent and the worker are traced apart.

    python bench/trace_predict.py            # the shipped bundle on its golden image
    python bench/trace_predict.py --list     # each function, in order
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import segpipe

PACKAGE = Path(segpipe.__file__).parent
ROOT = Path(__file__).resolve().parents[1]
HOOK = """
import os, sys, threading
where, package, seen = os.environ["TRACE_TO"], os.environ["TRACE_OF"], set()
# class bodies (not CO_OPTIMIZED), lambdas and comprehensions are no functions that a reader walks to

def hook(frame, event, argument):
    code = frame.f_code
    ours = event == "call" and code not in seen and code.co_filename.startswith(package)
    if ours and code.co_flags & 1 and code.co_name[0] != "<":
        seen.add(code)
        with open(os.path.join(where, str(os.getpid())), "a") as file:
            file.write(f"{code.co_filename[len(package) + 1:]}:{code.co_qualname}\\n")

threading.setprofile(hook)
sys.setprofile(hook)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print each function, in order")
    parser.add_argument("--bundle", type=Path, default=ROOT / "bundles/hippocampus_mri")
    parser.add_argument(
        "--image", type=Path, help="a NIfTI file or a DICOM folder [default: the bundle's golden image]"
    )
    options = parser.parse_args()
    image = options.image or options.bundle / "golden/images/image.nii.gz"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "hook").mkdir()
        (folder / "traces").mkdir()
        (folder / "hook" / "sitecustomize.py").write_text(HOOK)
        paths = os.pathsep.join([str(folder / "hook"), str(PACKAGE.parent)])
        environment = {**os.environ, "PYTHONPATH": paths, "TRACE_TO": str(folder / "traces"), "TRACE_OF": str(PACKAGE)}
        command = [
            sys.executable,
            "-m",
            "segpipe",
            "predict",
            str(options.bundle),
            str(image),
            str(folder / "out"),
            "--json",
        ]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        if process.wait():
            sys.exit(f"predict ended with {process.returncode}")
        traces = sorted((folder / "traces").iterdir(), key=lambda path: path.name != str(process.pid))
        for path in traces:
            functions = path.read_text().splitlines()
            files = [function.partition(":")[0] for function in functions]
            switches = sum(before != after for before, after in itertools.pairwise(files))
            side = "parent" if path.name == str(process.pid) else "worker"
            print(f"{side}: {len(functions)} functions, {len(set(files))} files, {switches} switches of file")
            if options.list:
                print(*(f"  {function}" for function in functions), sep="\n")


if __name__ == "__main__":
    main()
