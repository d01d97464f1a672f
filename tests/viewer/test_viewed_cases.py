"""Which cases and files are meant by a folder, a case's folder or a manifest."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_results import NAMES, Tiny, write_results

from segpipe.errors import UsageError
from segpipe.viewer import find_viewed
from segpipe.viewer.volumes import read_case


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return write_results(tmp_path_factory.mktemp("cases"))


def test_a_folder_a_case_and_a_manifest_mean_the_same_case(tiny: Tiny) -> None:
    for path in (tiny.out, tiny.out / "case_1", tiny.truth):
        (case,) = find_viewed(path)
        assert case.id == "case_1"
        assert [each.name for each in case.images] == ["image.nii.gz"]
        assert case.layers[0].names == NAMES
    assert [layer.name for layer in find_viewed(tiny.out)[0].layers] == ["prediction", "entropy"]


def test_truth_and_an_earlier_prediction_become_layers(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.out, tmp_path / "earlier")
    (case,) = find_viewed(tiny.out, truth=tiny.truth, earlier=tmp_path / "earlier")
    assert [layer.name for layer in case.layers] == ["prediction", "entropy", "truth", "earlier"]
    assert case.layers[3].path == tmp_path / "earlier" / "case_1" / "segmentation.nii.gz"
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(tiny.truth.parent / "label.nii.gz", flat / "case_1.nii.gz")
    (case,) = find_viewed(tiny.out, truth=flat)
    assert (case.layers[-1].name, case.layers[-1].names) == ("truth", NAMES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"path": "nowhere"}, "no such file or folder"),
        ({"path": "empty"}, "there is no case to look at"),
        ({"only": ["case_2"]}, "no such case"),
        ({"truth": "empty"}, "no label map of these cases"),
        ({"earlier": "nowhere"}, "no such folder of label maps"),
    ],
)
def test_what_is_not_there_is_said(tiny: Tiny, tmp_path: Path, arguments: dict[str, object], words: str) -> None:
    (tmp_path / "empty").mkdir()
    places = {name: tmp_path / value for name, value in arguments.items() if isinstance(value, str)}
    given = {"path": tiny.out, **arguments, **places}
    with pytest.raises(UsageError, match=words):
        find_viewed(given.pop("path"), **given)  # type: ignore[arg-type]


def test_others_than_the_owner_see_pictures_and_why(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny.out, tmp_path / "of another")
    read = Path.read_text

    def refuse(path: Path, *given: Any, **named: Any) -> str:
        if path.name == "mapping.jsonl":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return read(path, *given, **named)

    monkeypatch.setattr(Path, "read_text", refuse)
    (case,) = find_viewed(tmp_path / "of another")
    assert (case.id, case.images) == ("case_1", ())
    assert [layer.name for layer in case.layers] == ["prediction", "entropy"]
    assert "where the image lies is not known" in str(read_case(case).pictures_only)


def test_a_refused_series_and_odd_names_are_no_cases(tiny: Tiny, tmp_path: Path) -> None:
    out = shutil.copytree(tiny.out, tmp_path / "out")
    (out / "mapping.jsonl").write_text('{"id": "case_1", "paths": ["x.dcm"], "refused": "gap"}\n[1]\n{"id": 5}\n')
    shutil.copytree(out / "case_1", out / "..odd")
    (case,) = find_viewed(out)
    assert (case.id, case.images) == ("case_1", ())


@pytest.mark.parametrize("result", [[], {"labels": ["left"]}, {"sha256": 7}, {"source_sha256": 7}])
def test_a_result_that_is_none_is_shown_without_what_it_says(tiny: Tiny, tmp_path: Path, result: object) -> None:
    out = shutil.copytree(tiny.out, tmp_path / "out")
    (out / "case_1/result.json").write_text(json.dumps(result))
    (out / "mapping.jsonl").write_text('{"id": "case_1", "paths": 7}\n')
    (case,) = find_viewed(out)
    assert (case.images, case.layers[0].names) == ((), {})


def test_the_folder_of_a_case_is_known_from_within(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.out / "case_1")
    assert [case.id for case in find_viewed(Path())] == ["case_1"]
