"""Whatever a file holds: it is used or refused in words, soon, and nothing is written or started beside the output.

`make test-slow` runs the small corpus and a short while of each target, `make fuzz` ten minutes of each. What breaks a
promise is kept in the folder that is named (``FUZZ_FOUND``), the smallest that was found; once mended it goes into
``corpus/TARGET``. With ``FUZZ_GROW=1`` inputs that end in another way than those that are there are added to it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from bundle_files import bundles
from case_lists import datasets, manifests
from dicom_files import dicom
from guard import BrokenPromiseError, Room, room
from hypothesis import HealthCheck, Phase, given, seed, settings
from images import nifti, rasters
from target import Input, Target

from segpipe.errors import SegpipeError

CORPUS = Path(__file__).with_name("corpus")
FOUND = Path(os.environ.get("FUZZ_FOUND", "fuzz_found")).resolve()
MINUTES = float(os.environ.get("FUZZ_MINUTES", 0.05))
NAMES = ("nifti", "rasters", "dicom", "archive", "config", "metadata", "manifest", "dataset")
MOST_BYTES = 300_000


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    scratch = tmp_path_factory.mktemp("sound")
    made = [nifti(), rasters(), dicom(scratch), *bundles(scratch), manifests(), datasets()]
    return {target.name: target for target in made}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Room]:
    with warnings.catch_warnings(), room(tmp_path / "room") as made:
        warnings.simplefilter("ignore")
        yield made


def tried(target: Target, given: Input, place: Room) -> SegpipeError | None:
    """Put an input into a folder of its own and use it; return why it is refused."""
    ending, content = given
    for folder in (place.output, place.temporary / "input"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    path = place.temporary / "input" / f"b{ending}"
    path.write_bytes(content)
    return place.one_input(lambda: target.use(path, place))


def corpus(name: str) -> list[Input]:
    """What is kept of a target, in the order of the names."""
    return [(f".{path.name.partition('.')[2]}", path.read_bytes()) for path in sorted((CORPUS / name).glob("*"))]


def ending_of(error: SegpipeError | None) -> str:
    """Say in which way an input ended, without what differs from input to input."""
    return "used" if error is None else re.sub(r"\d+|'[^']*'", "_", error.message)


def where(error: BaseException) -> str:
    """Name the place in the product at which a promise was broken."""
    cause = error.__cause__ or error
    frames = traceback.extract_tb(cause.__traceback__)
    product = [frame for frame in frames if "/segpipe/" in frame.filename]
    last = (product or frames)[-1]
    place = f"{Path(last.filename).stem}-{last.name}"
    return f"{type(cause).__name__}-{place}".replace("<", "").replace(">", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_corpus_breaks_no_promise(name: str, targets: dict[str, Target], place: Room) -> None:
    for each in corpus(name):
        tried(targets[name], each, place)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_is_sound_is_used(name: str, targets: dict[str, Target], place: Room) -> None:
    for each in targets[name].sound:
        ended = tried(targets[name], each, place)
        assert ended is None, f"{each[0]}: {ended}"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_is_made_of_sound_files_breaks_no_promise(
    name: str, targets: dict[str, Target], place: Room, capsys: pytest.CaptureFixture[str]
) -> None:
    target, known, count = targets[name], Counter[str](), 0
    endings: dict[str, Input] = {}
    kept = [ending_of(tried(target, each, place)) for each in [*target.sound, *corpus(name)]]
    until = time.monotonic() + 60 * MINUTES

    def one(given: Input) -> None:
        nonlocal count
        if time.monotonic() > until:
            return
        count += 1
        try:
            ending = ending_of(tried(target, given, place))
            endings[ending] = min(given, endings.get(ending, given), key=lambda each: len(each[1]))
        except BrokenPromiseError as error:
            if known[where(error)] == 0:
                _keep(name, where(error), given, error)
                raise

    for turn in range(1_000_000):
        if time.monotonic() > until:
            break
        try:
            _many(target, one, turn)
        except BrokenPromiseError as error:
            known[where(error)] += 1
    new = {ending: each for ending, each in endings.items() if ending not in kept}
    with capsys.disabled():
        words = f"{count} inputs in {MINUTES:g} min, {len(endings)} ways to end ({len(new)} not in the corpus)"
        print(f"\n{name}: {words}, {len(known)} broken promises", *known, sep="\n  ")
    if os.environ.get("FUZZ_GROW") == "1":
        _grow(name, new.values())
    assert not known, f"kept in {FOUND / name}"


def _many(target: Target, one: Callable[[Input], None], turn: int) -> None:
    quiet = [
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
        HealthCheck.large_base_example,
    ]
    phases = (Phase.generate, Phase.shrink)
    run = given(target.inputs)(one)
    run = settings(
        max_examples=50,
        report_multiple_bugs=False,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=quiet,
    )(run)
    seed(turn)(run)()


def _keep(name: str, what: str, given: Input, error: BaseException) -> None:
    (FOUND / name).mkdir(parents=True, exist_ok=True)
    (FOUND / name / f"{what}{given[0]}").write_bytes(given[1])
    words = "".join(traceback.format_exception(error))
    (FOUND / name / f"{what}.txt").write_text(words, errors="backslashreplace")


def _grow(name: str, inputs: Iterable[Input]) -> None:
    size = sum(len(content) for _, content in corpus(name))
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    for ending, content in sorted(inputs, key=lambda each: len(each[1])):
        size += len(content)
        if size <= MOST_BYTES // len(NAMES):
            (CORPUS / name / f"{hashlib.sha256(content).hexdigest()[:12]}{ending}").write_bytes(content)


def test_the_corpus_is_small_and_named_by_content() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    assert {path.parent.name for path in files} <= set(NAMES)
    assert [
        path for path in files if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(path.name[:12])
    ] == []
