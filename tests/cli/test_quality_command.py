"""What `segpipe quality fit` says of a model of few patients."""

from __future__ import annotations

import pytest

from segpipe import studies
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
    assert not_said not in said
