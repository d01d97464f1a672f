"""Rows of a quality model that were measured before: whose they are now, and which patients are counted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segpipe.data import Case, Covariates
from segpipe.errors import UsageError
from segpipe.quality import Population, Row
from segpipe.studies import quality_fit
from segpipe.training import FoldModel


def test_a_fold_that_comes_later_moves_the_rows_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def fold(bundle: Any, model: FoldModel, *_: Any) -> Any:
        def measure(task: Any, _seed: int) -> Row:
            measured.append(model.fold)
            return Row(task.key, "p", features={"image:noise": 1.0, "embedding 0:000": float(model.fold)})

        return measure

    monkeypatch.setattr(quality_fit, "_Fold", fold)
    monkeypatch.setattr(quality_fit, "open_bundle", lambda path: SimpleNamespace(weights_sha256=path.name))
    monkeypatch.setattr(quality_fit, "_tasks", lambda model, *_: [task(model.fold)])

    def task(fold: int) -> Any:
        paths = {"image": f"c{fold}.nii", "label": f"l{fold}.nii"}
        for path in paths.values():
            (tmp_path / path).touch()
        return SimpleNamespace(key=f"c{fold}", case=Case(id=f"c{fold}", **paths))

    def rows(*folds: int) -> list[dict[str, float]]:
        models = [FoldModel(each, tmp_path / f"bundle{each}", tmp_path, tmp_path) for each in folds]
        return [row.features for row in quality_fit._measured(tmp_path, models, None, 0, 0, None, None)]

    noise = {"image:noise": 1.0}
    assert rows(1, 2) == [noise | {"embedding 0:000": 1.0}, noise | {"embedding 1:000": 2.0}]
    assert rows(0, 1, 2) == [noise | {f"embedding {each}:000": float(each)} for each in (0, 1, 2)]
    assert rows(2) == [noise | {"embedding 0:000": 2.0}]
    assert measured == [1, 2, 0]
    (tmp_path / "l1.nii").write_text("corrected since")
    rows(0, 1, 2)
    assert measured == [1, 2, 0, 1]
    (tmp_path / "c2.nii").unlink()
    monkeypatch.setattr(quality_fit, "_tasks", lambda *_: [SimpleNamespace(key="c", case=Case(id="c", image="c2.nii"))])
    with pytest.raises(UsageError, match="a case cannot be read"):
        rows(2)


def test_only_patients_that_are_known_are_counted() -> None:
    def population(*patients: str | None) -> Population:
        cases = [
            Case(id=f"c{n}", image=f"c{n}.nii.gz", patient_id=patient, covariates=Covariates(sex="F"))
            for n, patient in enumerate(patients)
        ]
        manifest: Any = SimpleNamespace(cases=lambda: cases)
        return quality_fit._population(manifest, [Row(case.id, case.group) for case in cases])

    assert population(*[None] * 6) == Population()
    assert population(*"abcd", None) == Population.of([(patient, {"sex": "F"}) for patient in "abcd"])
    assert population(*"abcde").values == {"sex": {"F": 5}}
