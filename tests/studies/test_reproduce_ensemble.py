"""An ensemble is reproduced where each of its members is; a model of all cases is reproduced without a validation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator

from segpipe.bundle.tensors import tensors_sha256
from segpipe.bundle.vet.documents import write_sums
from segpipe.cli.app import run
from segpipe.common.files import sha256_of, write_json
from segpipe.components.handlers import StopOnNonFinite
from segpipe.errors import OK, REFUSED
from tiny_data import train_arguments, write_data
from tiny_folds import fold_arguments, read, stand_in

SCHEMA = Path(__file__).parents[2] / "docs/schemas/reproduce.schema.json"


@pytest.fixture(scope="module", autouse=True)
def one_revision() -> Iterator[None]:
    """The checkout may change while the tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segpipe.common.provenance.git_revision", lambda: None)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("members") / "data").parent


@pytest.fixture(scope="module")
def ensemble(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-validation of two folds that was trained here, with its measured figures, as one bundle."""
    folder = tmp_path_factory.mktemp("origin")
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch, {0: 1, 1: 2})
        assert run(fold_arguments(data / "manifest.json", folder / "run", "--seed", "4")) == 0
    assert run(["export", str(folder / "run"), str(folder / "tiny")]) == 0
    return folder / "tiny"


def reproduce(bundle: Path, data: Path, out: Path, *more: str) -> int:
    return run(["reproduce", str(bundle), "--data", str(data), "--out", str(out), *more])


def conforms(document: dict[str, Any]) -> bool:
    return Draft202012Validator(read(SCHEMA)).is_valid(document)


def test_what_was_trained_becomes_one_bundle_with_the_figures_of_its_folds(ensemble: Path) -> None:
    metadata = read(ensemble / "configs/metadata.json")
    assert [member["fold"] for member in metadata["members"]] == [0, 1]
    assert metadata["estimate"]["cases"] == 6 and metadata["estimate"]["folds"] == 2
    assert metadata["training_data"]["training_cases"] == 6
    assert metadata["run"]["keep_weights"] == "last"
    assert "not of this ensemble" in (ensemble / "docs/README.md").read_text()


def test_every_member_comes_out_bit_for_bit(ensemble: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    capsys.readouterr()
    assert reproduce(ensemble, data, tmp_path / "again", "--json") == OK
    report = json.loads(capsys.readouterr().out)
    assert conforms(report) and report["verdict"] == "bit-identical"
    assert [(each["fold"], each["verdict"]) for each in report["members"]] == [
        (0, "bit-identical"),
        (1, "bit-identical"),
    ]
    assert report["training"]["fold"] is None and report["data"]["cases"] == 6
    for number, each in enumerate(report["members"]):
        state = torch.load(ensemble / f"models/member_{number}.pt", weights_only=True)
        ours = torch.load(tmp_path / "again" / each["folder"] / "final.pt", weights_only=True)
        assert all(torch.equal(state[name], ours[name]) for name in state)
    assert report["members"][0]["weights"]["sha256"] != report["members"][1]["weights"]["sha256"]


def test_it_goes_on_after_an_interruption_within_the_second_member(
    ensemble: Path, data: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    trained = []

    def interrupt(self: Any, engine: Any) -> None:
        trained.append(1)
        if len(trained) > 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StopOnNonFinite, "__call__", interrupt)
        assert reproduce(ensemble, data, tmp_path / "again") == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    assert read(tmp_path / "again/fold_0/run.json")["status"] == "finished"
    assert read(tmp_path / "again/fold_1/run.json")["status"] != "finished"
    assert reproduce(ensemble, data, tmp_path / "again") == OK


def test_one_member_that_differs_is_no_reproduction(ensemble: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    changed = Path(shutil.copytree(ensemble, tmp_path / "changed"))
    file = changed / "models/member_1.pt"
    state = torch.load(file, weights_only=True)
    state = {name: value + 0.5 if value.is_floating_point() else value for name, value in state.items()}
    torch.save(state, file)
    write_sums(changed)
    assert reproduce(changed, data, tmp_path / "again") == REFUSED  # its record is of other weights
    assert "the weights differ" in capsys.readouterr().err
    provenance = read(changed / "provenance.json")
    provenance["members"][1]["weights"].update(tensors_sha256=tensors_sha256(state), sha256=sha256_of(file))
    write_json(changed / "provenance.json", provenance)
    write_sums(changed)
    assert reproduce(changed, data, tmp_path / "again", "--json") == REFUSED
    report = json.loads(capsys.readouterr().out)
    assert conforms(report) and report["verdict"] == "not bit-identical"
    assert [each["verdict"] for each in report["members"]] == ["bit-identical", "not bit-identical"]
    assert report["weights"]["max_abs_difference"] == pytest.approx(0.5)


def test_a_model_of_all_cases(data: Path, tmp_path: Path, capsys: Any) -> None:
    assert run(train_arguments(data / "manifest.json", tmp_path / "run", "--epochs", "1", "--fold", "none")) == 0
    assert run(["export", str(tmp_path / "run"), str(tmp_path / "whole")]) == 0
    capsys.readouterr()
    assert reproduce(tmp_path / "whole", data, tmp_path / "again", "--json") == OK
    report = json.loads(capsys.readouterr().out)
    assert conforms(report) and report["verdict"] == "bit-identical"
    assert report["training"]["fold"] is None and "members" not in report
    assert report["validation"]["recorded"] is None and report["validation"]["here"] is None
