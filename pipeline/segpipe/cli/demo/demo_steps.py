"""The steps of the demo: the commands that a user would type, printed and then run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from segpipe.cli.demo.demo_data import write_data
from segpipe.common.console import Console
from segpipe.common.files import cannot_write, write_json
from segpipe.common.processes import tied
from segpipe.data import Manifest
from segpipe.errors import INTERRUPTED, OK, SegpipeError, UsageError

MARKER = "demo.json"
MADE = (
    *("data", "task.yaml", "task.fingerprint.json", "run", "bundle", "predictions", "evaluation", "stock"),
    *("index.html", MARKER),
)


@dataclass(frozen=True)
class Settings:
    """What is asked for.

    Attributes:
        out: folder of everything that it makes.
        cases: generated cases, a quarter of them for test.
        epochs: of training.
        seed: of the data and the training.
        threads: CPU threads.
        coarseness: factor on the voxel size.
    """

    out: Path
    cases: int
    epochs: int
    seed: int
    threads: int
    coarseness: float = 1.0


@dataclass(frozen=True)
class Step:
    """A command as a reader can repeat it, OUT standing for the demo's folder, and how long it took."""

    command: str
    seconds: float


COMMANDS = """
segpipe check OUT/data/manifest.json
segpipe plan OUT/data/manifest.json -o OUT/task.yaml
segpipe train OUT/data/manifest.json --task OUT/task.yaml --network unet --loss dice_ce --augment light --runtime cpu \
--fold 0 --epochs {settings.epochs} --seed {settings.seed} --threads {settings.threads} --set batch_size=2 --out OUT/run
segpipe export OUT/run OUT/bundle --name demo
segpipe predict OUT/bundle OUT/data/manifest.json OUT/predictions --split test --threads {settings.threads}
segpipe evaluate OUT/data/manifest.json OUT/predictions --out OUT/evaluation --split test
segpipe export OUT/run OUT/bundle --name demo --evaluation OUT/evaluation --overwrite
python -m monai.bundle run --config_file OUT/bundle/configs/inference.json --bundle_root OUT/bundle \
--dataset_dir OUT/data/imagesTs --output_dir OUT/stock
"""  # the second export puts the figures on the bundle's card


def commands(settings: Settings, out: str = "OUT") -> list[list[str]]:
    """Return the words of every command in its order; the last one is stock MONAI's, the others are ours."""
    lines = COMMANDS.format(settings=settings).strip().splitlines()
    return [[re.sub(r"^OUT(?=/)", lambda _: out, word) for word in line.split()] for line in lines]


def prepare(out: Path, overwrite: bool) -> None:
    """Make the folder and mark it as a demo's; what an older demo made is removed on request.

    Raises:
        UsageError: the folder holds something else, or an older demo and ``overwrite`` is not set.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            if not (out / MARKER).is_file():
                raise UsageError("the folder holds something that is not of a demo", path=out, hint="name an empty one")
            if not overwrite:
                raise UsageError(
                    "a demo was made here already",
                    path=out,
                    hint="give --overwrite to make it again, or name another folder",
                )
            for name in MADE:
                _remove(out / name)
        write_json(out / MARKER, {"schema_version": 1, "made_by": "segpipe demo"})
    except OSError as error:
        raise cannot_write(out, error) from error


def run_steps(
    settings: Settings,
    manifest: Manifest,
    console: Console,
    run: Callable[[list[str]], int],
    run_python: Callable[[list[str]], None],
) -> list[Step]:
    """Generate the data, then print and run every command.

    Args:
        settings: what is asked for; the folder is prepared already.
        manifest: of the cases to generate.
        console: where the commands are printed.
        run: runs the words after ``segpipe`` and returns the exit code.
        run_python: runs ``python ...``, as `run_python` does.

    Returns:
        The steps with their times.

    Raises:
        SegpipeError: a command failed; it carries that command's exit code.
    """
    began = time.monotonic()
    with console.progress() as progress:
        bar = progress.add_task("generating", total=len(manifest.cases()))
        write_data(settings.out / "data", manifest, settings.seed, settings.coarseness, lambda _: progress.advance(bar))
    console.say(f"{len(manifest.cases())} cases generated in {time.monotonic() - began:.0f} s")

    steps = []
    for words, repeatable in zip(commands(settings, str(settings.out)), commands(settings), strict=True):
        console.say()
        console.say(f"$ {shlex.join(words)}")
        began = time.monotonic()
        if words[0] == "segpipe":
            with redirect_stdout(sys.stderr) if console.as_json else nullcontext():
                code = run(words[1:])
            if code == INTERRUPTED:
                raise KeyboardInterrupt
            if code != OK:
                error = SegpipeError(f"the demo stopped at `segpipe {words[1]}`", hint="see the message above")
                error.exit_code = code
                raise error
        else:
            run_python(words)
        steps.append(Step(shlex.join(repeatable), time.monotonic() - began))
    return steps


def run_python(words: list[str]) -> None:
    """Run ``python ...`` as a process; its many lines are shown only when it fails.

    Raises:
        SegpipeError: it failed.
    """
    done = subprocess.run(
        tied([sys.executable, *words[1:]]), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        last = [line for line in done.stdout.splitlines() if line.strip()][-5:]
        raise SegpipeError("stock MONAI did not run the bundle", found=" | ".join(last))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
