"""Advice that a refusal prints is followed, word for word, and then the series loads; or it is about another place."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import test_traps as traps
import typer
from make import Grid, enhanced, series, tilted, write
from pydicom.dataset import Dataset

import segpipe.dicom
from segpipe.cli.app import VERBS, app, run
from segpipe.dicom.model import Reason, Series
from segpipe.dicom.scanning import scan

Images = list[Dataset]
SOURCE = Path(segpipe.dicom.__file__).parent
# what only another place can do: the archive, the scanner, the program that wrote the file
ELSEWHERE = (
    "Find the missing files",
    "export the series again",
    "Export the series again",
    "Export each volume as a series of its own",
    "Export the slices of each kind again, as a series of its own",
    "copy again",
    "copy the file again from where it came from",
    "the header is not that of these pixels",
    "ask for the original images of the scanner",
    "export it as enhanced multi-frame",
    "let the archive send it uncompressed",
    "use the series that this picture was made from",
    "Check whether it belongs to this series",
)


def only(folder: Path) -> Series:
    (found,) = scan(folder).series
    return found


def both(images: Images) -> None:
    traps.tilt(images, 14)
    for number, image in enumerate(images):
        traps.shift(image, 0, 0, 0.25 * number**1.5)


def tilted_gap(images: Images) -> None:
    traps.tilt(images, 14)
    del images[4]


def convert(folder: Path, found: Series) -> None:
    """Give `segpipe convert` exactly the options that the advice names."""
    words = [word for pair in re.findall(r"(--repair) (tilt|spacing)", found.detail) for word in pair]
    assert words and run(["convert", str(folder), str(folder / "out"), *words]) == 0
    assert [path.name for path in (folder / "out").glob("*.gz")] == [f"{found.case_id}.nii.gz"]


def name_it(folder: Path, found: Series) -> None:
    """Give `segpipe convert` the option of the advice, with its value."""
    words = re.findall(r"(--secondary-capture) (\S+)\.$", found.detail)[0]
    assert run(["convert", str(folder), str(folder / "out"), *words]) == 0


def delete_second(folder: Path, found: Series) -> None:
    """Keep the right one of the two that are named."""
    first, second = re.findall(r"image_\d+\.dcm", found.detail)[:2]
    assert first != second
    (folder / second).unlink()
    assert only(folder).state == "loaded"


def move_others(folder: Path, found: Series) -> None:
    """Move the files that are named, and read each folder on its own."""
    named = found.detail.partition("results of its own: ")[2].rstrip(".").split(", ")
    for file in named:
        (folder.parent / "others").mkdir(exist_ok=True)
        (folder / file).rename(folder.parent / "others" / file)
    assert only(folder).state == "loaded"


def one_of_each_position(folder: Path, found: Series) -> None:
    for number in range(10, 20):
        (folder / f"image_{number:03}.dcm").unlink()
    assert only(folder).state == "loaded"


def add_others(folder: Path, found: Series) -> None:
    """Put the other slices of its series beside it."""
    images = series(Grid(slices=10))
    traps.every(images, "SeriesInstanceUID", found.series_uid)
    traps.every(images, "StudyInstanceUID", found.study_uid)
    traps.every(images, "FrameOfReferenceUID", found.frame_of_reference_uid)
    write(images[1:], folder, "other")
    assert only(folder).state == "loaded"


def elsewhere(folder: Path, found: Series) -> None:
    assert any(words in found.detail for words in ELSEWHERE), found.detail


Follow = Callable[[Path, Series], None]
ADVICE: dict[str, tuple[Reason, Callable[[Images], object], Follow]] = {
    "tilt": ("gantry_tilt", lambda images: traps.tilt(images, 14), convert),
    "uneven": ("variable_spacing", traps.spread, convert),
    "tilted and uneven": ("variable_spacing", both, convert),
    "gap": ("gap", traps.gap, convert),
    "tilted with a gap": ("gap", tilted_gap, convert),
    "two of one UID": ("duplicate_conflict", traps.conflict, delete_second),
    "a smaller one": ("mixed_matrix", lambda images: traps.smaller(images[-1]), move_others),
    "three turned": ("mixed_orientation", lambda images: [traps.turned(one) for one in images[7:]], move_others),
    "half turned, too many to name": ("mixed_orientation", lambda images: many(images), elsewhere),
    "each twice": ("repeated_positions", traps.doubled, one_of_each_position),
    "one": ("single_slice", lambda images: images.__delitem__(slice(1, None)), add_others),
    "beside": ("in_plane_shift", lambda images: traps.shift(images[4], 5, 0, 0), elsewhere),
    "mosaic": ("mosaic", traps.mosaic, elsewhere),
    "no position": ("missing_tag", traps.missing("ImagePositionPatient"), elsewhere),
    "short": ("truncated", traps.missing("PixelData"), elsewhere),
    "colour": ("color", lambda images: [traps.to_color(image) for image in images], elsewhere),
    "half the rows": ("pixel_layout", lambda images: traps.every(images, "Rows", 6), elsewhere),
    "a capture": (
        "secondary_capture",
        lambda images: traps.every(images, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.7"),
        name_it,
    ),
    "two patients": ("mixed_attributes", lambda images: traps.every(images[4:], "PatientID", "X"), elsewhere),
    "a part of an image": ("incomplete", lambda images: part_of_an_image(images), elsewhere),
    "a film": ("transfer_syntax", traps.unknown_syntax, elsewhere),
}


def part_of_an_image(images: Images) -> None:
    images[:] = [enhanced(Grid(slices=4))]
    images[0].ConcatenationUID, images[0].InConcatenationNumber, images[0].InConcatenationTotalNumber = "1.2.3", 1, 2
    images[0].ConcatenationFrameOffsetNumber = 0


def many(images: Images) -> None:
    images[:] = series(Grid(slices=50))
    for image in images[25:]:
        traps.turned(image)


@pytest.mark.parametrize("case", ADVICE)
def test_advice_is_followed(case: str, tmp_path: Path) -> None:
    reason, edit, follow = ADVICE[case]
    images = series(Grid(slices=10))
    edit(images)
    write(images, tmp_path / "in")
    found = only(tmp_path / "in")
    assert found.reason == reason
    follow(tmp_path / "in", found)


def test_every_reason_has_advice_that_is_followed() -> None:
    assert {reason for reason, _, _ in ADVICE.values()} == set(get_args(Reason))


def test_both_repairs_are_named_where_both_are_needed(tmp_path: Path) -> None:
    images = series(Grid(slices=10))
    both(images)
    write(images, tmp_path)
    assert "--repair tilt --repair spacing, which segpipe convert, import and predict have" in only(tmp_path).detail


@pytest.mark.parametrize("edit", [traps.gap, lambda images: images.__delitem__(slice(1, None))])
def test_a_file_that_cannot_be_read_is_named_where_slices_are_missing(
    edit: Callable[[Images], object], tmp_path: Path
) -> None:
    images = series(Grid(slices=10))
    edit(images)
    write(images, tmp_path)
    (tmp_path / "lost.dcm").write_bytes(bytes(128) + b"DICM" + b"junk")
    assert only(tmp_path).detail.endswith("may be what is missing, copy again: lost.dcm.")


def texts() -> list[str]:
    """Every text of the package that a person may be told, f-strings with their values as ``{}``."""
    found = []
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        docs = {id(node.body[0].value) for node in ast.walk(tree) if has_docstring(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                found.append(node.value)
    return found


def has_docstring(node: ast.AST) -> bool:
    body = getattr(node, "body", None)
    return isinstance(body, list) and bool(body) and isinstance(body[0], ast.Expr)


def test_every_command_and_option_that_advice_names_is_there() -> None:
    group = typer.main.get_command(app)
    named = [text for text in texts() if "segpipe " in text]
    assert len(named) > 5
    for text in named:
        for words in re.findall(r"segpipe ((?:[a-z]+(?:, | and )?)+)", text):
            verbs = [verb for verb in re.split(r", | and ", words.strip()) if verb]
            first = [verb.split()[0] for verb in verbs]
            assert first[0] in VERBS, text
            listed = [group.commands[verb] for verb in first if verb in VERBS]  # type: ignore[attr-defined]
            for option in re.findall(r"--[a-z][a-z-]+", text):
                assert all(any(option in one.opts for one in verb.params) for verb in listed), (option, text)


def test_hints_of_errors_are_an_action() -> None:
    """A hint begins with what to do, or says that there is nothing to do."""
    hints = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "hint" and isinstance(node.value, ast.Constant):
                hints.append(str(node.value.value))
    actions = "ask change check choose convert copy export find give leave let make report resample send use"
    stated = ("`segpipe scan` lists", "colour images are not segmented here", "the NIfTI label map is not affected")
    assert len(hints) > 15
    for hint in hints:
        assert hint.split()[0] in actions.split() or hint.startswith(stated), hint


def test_a_repair_that_is_not_enough_says_which_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tilted(), tmp_path)
    assert run(["convert", str(tmp_path), str(tmp_path / "out"), "--repair", "spacing"]) == 3
    assert "--repair tilt" in " ".join(capsys.readouterr().out.split())
