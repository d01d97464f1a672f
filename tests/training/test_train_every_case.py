"""One model of every training case: nothing is validated, and the weights of the end are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import segpipe
from segpipe.cli.app import run
from segpipe.components.handlers import StopOnNonFinite
from segpipe.components.training_data import load_cases
from tiny_data import SMALL, train_arguments
from tiny_folds import read


@pytest.fixture(scope="module")
def whole(tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("every") / "case"
    assert run(train_arguments(tiny_manifest, out, "--epochs", "3", "--fold", "none")) == 0
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "final.pt", weights_only=True)


def test_every_case_is_trained_on_and_none_is_validated(whole: Path) -> None:
    record = read(whole / "run.json")
    assert record["status"] == "finished"
    assert record["cases"] == {"training": [f"case_{number}" for number in range(6)], "validation": []}
    assert record["fold"] is None
    assert (record["epochs"], record.get("best")) == (3, None)
    last = torch.load(whole / "last.pt", weights_only=True)
    assert (last["epoch"], last["iteration"]) == (3, 9)  # six cases, two a batch
    assert not (whole / "best.pt").exists()
    assert all(torch.equal(last["network"][name], tensor) for name, tensor in weights(whole).items())


def test_it_resumes_bit_for_bit(whole, tiny_manifest, tmp_path, monkeypatch, capsys) -> None:
    def interrupt(self, engine) -> None:
        if engine.state.iteration == 5:
            raise KeyboardInterrupt

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(StopOnNonFinite, "__call__", interrupt)
        assert run(train_arguments(tiny_manifest, out, "--epochs", "3", "--fold", "none")) == 130
    assert f"segpipe train --resume {out}" in capsys.readouterr().err
    assert run(["train", "--resume", str(out)]) == 0
    assert f"next: segpipe export {out}" in capsys.readouterr().out
    ours, theirs = weights(out), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_choice_by_validation_is_refused(tiny_manifest, tmp_path, capsys) -> None:
    for choice in ("keep_weights=best", "early_stop_patience=2"):
        assert run(train_arguments(tiny_manifest, tmp_path / "run", "--fold", "none", "--set", choice)) == 2
        assert choice.partition("=")[0] in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_manifest_without_folds_will_do(tiny_manifest, tmp_path) -> None:
    document = read(tiny_manifest)
    document["training"] = [{**case, "fold": None} for case in document["training"][:2]]
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    settings = {"task": tiny_manifest.parent / "task.yaml", "data": tiny_manifest.parent, "overrides": SMALL}
    trial = segpipe.train(tmp_path / "manifest.json", fold=None, threads=1, dry_run=True, **settings).trial
    assert (trial["steps_per_epoch"], trial["seconds_per_validation_case"]) == (1, None)


def test_cases_of_no_fold_are_none_to_validate(tiny_manifest) -> None:
    place = (str(tiny_manifest), str(tiny_manifest.parent))
    assert load_cases(*place, "validation") == []
    assert [case["case_id"] for case in load_cases(*place, "training")] == [f"case_{number}" for number in range(6)]
