"""What `segpipe quality fit` says of a model of few patients."""

from __future__ import annotations

import json

import pytest

from segpipe import studies
from segpipe.bundle.exporting.quality_model import quality_section
from segpipe.cli.app import run
from segpipe.quality import QualityModel
from segpipe.quality.model import LabelModel
from segpipe.quality.plausibility import Plausibility


@pytest.mark.parametrize(
    ("patients", "tested", "words", "not_said"),
    [
        (
            12,
            {},
            "a case farther than each of them is to be looked at, about one usual case in 13",
            "too few patients for",
        ),
        (32, {"images": 32}, "too few patients for bounds at a level of 0.99: liver", "too few for bounds, which"),
        (33, {"images": 33}, "at a level of 0.99: liver", "farther than each of them"),
    ],
)
def test_it_says_what_few_patients_do_not_give(
    patients: int,
    tested: dict[str, int],
    words: str,
    not_said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = QualityModel(Plausibility({}), {"liver": LabelModel(patients)}, patients, patients, 0.99, tested)
    monkeypatch.setattr(studies, "fit_quality", lambda *_, **__: model)
    assert run(["quality", "fit", "runs"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert words in said
    assert "patients unknown" not in said
    assert not_said not in said


def test_cases_of_unknown_patients_are_not_said_to_be_patients(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = QualityModel(Plausibility({}), {"liver": LabelModel(12)}, 12, 12, patients_known=False)
    monkeypatch.setattr(studies, "fit_quality", lambda *_, **__: model)
    assert run(["quality", "fit", "runs"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "12 cases, patients unknown: enough to say what is usual" in said
    assert "12 patients" not in said
    assert run(["quality", "fit", "runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["patients_known"] is False


@pytest.mark.parametrize(("known", "words"), [(True, "12 cases of 11 patients and"), (False, "12 cases of unknown")])
def test_the_card_says_patients_where_they_are_known_alone(known: bool, words: str) -> None:
    quality = {"patients": 11, "cases": 12, "level": 0.9, "tested": {}, "rules": {}, "patients_known": known}
    (section,) = quality_section({"quality": quality})
    assert words in section
    assert ("11 patients are too few" in section) == known
    assert ("11 cases are too few" in section) != known
