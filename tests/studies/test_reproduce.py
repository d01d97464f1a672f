"""A bundle's weights trained again from its own record: the same bits, or what the difference means."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from segpipe.bundle.tensors import tensors_sha256
from segpipe.bundle.vet.documents import write_sums
from segpipe.cli.app import run
from segpipe.common.files import sha256_of, write_json
from segpipe.studies.reproduction import Difference, compare_validation, compare_weights, differences
from tiny_data import train_arguments, write_data

ELSEWHERE = {"torch": "1.0.0"}


@pytest.fixture(scope="module", autouse=True)
def one_revision() -> Iterator[None]:
    """The checkout may change while the tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segpipe.common.provenance.git_revision", lambda: None)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose manifest has patients and hashes."""
    manifest = write_data(tmp_path_factory.mktemp("reproduce") / "data")
    document = json.loads(manifest.read_text())
    for number, case in enumerate(document["training"]):
        case["patient_id"] = f"Jane Doe {9 - number}"
        case["sha256"] = {path: sha256_of(manifest.parent / path) for path in (case["image"], case["label"])}
    write_json(manifest, document)
    return manifest.parent


@pytest.fixture(scope="module")
def bundle(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("origin")
    words = train_arguments(data / "manifest.json", folder / "run", "--epochs", "3", "--seed", "4")
    assert run(words) == 0
    assert run(["export", str(folder / "run"), str(folder / "tiny_mri")]) == 0
    return folder / "tiny_mri"


@pytest.fixture(scope="module")
def again(bundle: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a reproduction that went through."""
    out = tmp_path_factory.mktemp("again") / "run"
    assert run(["reproduce", str(bundle), "--data", str(data), "--out", str(out)]) == 0
    return out


@pytest.fixture
def changed(bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the bundle with another record, and SHA256SUMS that agree with it."""

    def change(edit: Callable[[dict[str, Any]], object], weights: float = 0.0) -> Path:
        copy = tmp_path / "changed"
        shutil.copytree(bundle, copy)
        provenance = json.loads((copy / "provenance.json").read_text())
        state = torch.load(copy / "models/model.pt", weights_only=True)
        if weights:
            state = {name: value + weights if value.is_floating_point() else value for name, value in state.items()}
            torch.save(state, copy / "models/model.pt")
            provenance["weights"]["tensors_sha256"] = tensors_sha256(state)
            provenance["weights"]["sha256"] = sha256_of(copy / "models/model.pt")
        edit(provenance)
        write_json(copy / "provenance.json", provenance)
        write_sums(copy)
        return copy

    return change


def elsewhere(provenance: dict[str, Any]) -> None:
    provenance["environment"]["versions"].update(ELSEWHERE)


def with_spread(sd: float) -> Callable[[dict[str, Any]], None]:
    """Trained elsewhere, and seeds that end as far apart as that, around what the bundle records."""

    def edit(provenance: dict[str, Any]) -> None:
        elsewhere(provenance)
        mean = provenance["best"]["val_mean_dice"] + 1.5 * sd
        spread = {"mean": mean, "sd": sd, "min": mean, "max": mean + sd, "n": 3}
        provenance["seeds"] = {"runs": [], "val_mean_dice": spread}

    return edit


def reproduce(bundle: Path, data: Path, out: Path, *more: str) -> int:
    return run(["reproduce", str(bundle), "--data", str(data), "--out", str(out), *more])


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def test_the_weights_are_the_same_bit_for_bit_though_patients_became_numbers(again, bundle, data) -> None:
    ours = torch.load(again / "best.pt", weights_only=True)
    theirs = torch.load(bundle / "models/model.pt", weights_only=True)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    manifest = json.loads((again / "manifest.json").read_text())
    assert "Jane" not in json.dumps(manifest)
    report = json.loads((again / "reproduction.json").read_text())
    assert report["verdict"] == "bit-identical"
    assert report["reproduced"] is True
    assert report["weights"]["max_abs_difference"] == 0
    assert report["data"] == {"cases": 6, "files": 12, "without_hash": 0}
    assert report["environment"] == {"recorded": True, "differences": []}
    assert str(data) not in json.dumps(report)
    record = json.loads((again / "run.json").read_text())
    assert (record["seed"], record["status"]) == (4, "finished")


def test_a_finished_one_is_only_compared(again, bundle, data, capsys) -> None:
    before = (again / "last.pt").stat().st_mtime_ns
    assert reproduce(bundle, data, again) == 0
    assert "bit-identical weights" in capsys.readouterr().out
    assert (again / "last.pt").stat().st_mtime_ns == before


def test_an_interrupted_one_goes_on_by_the_same_command(bundle, data, tmp_path, monkeypatch, capsys) -> None:
    from segpipe.components.handlers import StopOnNonFinite

    def interrupt(self, engine) -> None:
        if engine.state.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StopOnNonFinite, "__call__", interrupt)
        assert reproduce(bundle, data, tmp_path / "run") == 130
    assert "same command" in capsys.readouterr().err
    assert not (tmp_path / "run" / "reproduction.json").exists()
    assert reproduce(bundle, data, tmp_path / "run", "--json") == 0
    document = printed(capsys)
    assert document["verdict"] == "bit-identical"
    sessions = json.loads((tmp_path / "run" / "run.json").read_text())["sessions"]
    assert [session["resumed"] for session in sessions] == [False, True]


def test_a_model_of_every_case_is_reproduced_as_well(data, tmp_path) -> None:
    words = train_arguments(data / "manifest.json", tmp_path / "run", "--epochs", "1", "--fold", "none")
    assert run(words) == 0
    assert run(["export", str(tmp_path / "run"), str(tmp_path / "every")]) == 0
    assert run(["reproduce", str(tmp_path / "every"), "--data", str(data), "--out", str(tmp_path / "again")]) == 0
    report = json.loads((tmp_path / "again" / "reproduction.json").read_text())
    assert (report["verdict"], report["training"]["fold"], report["data"]["cases"]) == ("bit-identical", None, 6)
    assert report["validation"]["here"] is None


def test_missing_and_changed_files_are_named_before_anything_is_trained(bundle, data, tmp_path, capsys) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    (copy / "images/case_3.nii.gz").unlink()
    (copy / "labels/case_0.nii.gz").write_bytes(b"other")
    assert reproduce(bundle, copy, tmp_path / "run") == 3
    said = capsys.readouterr().err
    assert "missing images/case_3.nii.gz" in said
    assert "changed labels/case_0.nii.gz" in said
    assert "2 of 12" in said
    assert not (tmp_path / "run").exists()
    assert reproduce(bundle, tmp_path / "nowhere", tmp_path / "run") == 2


def test_files_without_a_hash_are_taken_as_they_are_and_counted(changed, data, tmp_path, capsys) -> None:
    copy = changed(lambda provenance: None)
    manifest = json.loads((copy / "configs/manifest.json").read_text())
    for case in manifest["training"][:2]:
        del case["sha256"]
    write_json(copy / "configs/manifest.json", manifest)
    write_sums(copy)
    assert reproduce(copy, data, tmp_path / "run", "--dry-run", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["data"] == {"cases": 6, "files": 12, "without_hash": 4}
    assert "4 of 12 files have no recorded hash" in err
    assert not (tmp_path / "run").exists()


def test_a_packed_bundle_is_taken_as_well(bundle, data, tmp_path, capsys) -> None:
    file = tmp_path / "packed.zip"
    shutil.make_archive(str(file.with_suffix("")), "zip", bundle)
    assert reproduce(file, data, tmp_path / "run", "--dry-run", "--json") == 0
    assert printed(capsys)["training"] == {"seed": 4, "fold": 0, "threads": 1, "num_workers": 0, "max_epochs": 3}


def test_what_differs_here_is_said_and_equal_bits_count_all_the_same(changed, again, data, capsys) -> None:
    assert reproduce(changed(elsewhere), data, again, "--json") == 0
    out, err = capsys.readouterr()
    assert f"torch: recorded 1.0.0, here {torch.__version__}" in err
    (difference,) = json.loads(out)["environment"]["differences"]
    assert difference == {"what": "torch", "recorded": "1.0.0", "here": torch.__version__}


@pytest.mark.parametrize(
    ("edit", "verdict", "code"),
    [
        (lambda provenance: None, "not bit-identical", 5),
        (elsewhere, "spread unknown", 5),
        (with_spread(0.02), "within the spread", 0),
        (lambda provenance: provenance.update(environment=None), "spread unknown", 5),
    ],
)
def test_other_weights_are_judged_by_environment_and_spread(changed, again, data, capsys, edit, verdict, code) -> None:
    assert reproduce(changed(edit, weights=0.25), data, again, "--json") == code
    document = printed(capsys)
    assert document["verdict"] == verdict
    assert document["reproduced"] is (code == 0)
    weights = document["weights"]
    assert weights["max_abs_difference"] == pytest.approx(0.25, abs=1e-6)
    assert weights["differing"] == weights["tensors"]
    assert weights["sha256"]["recorded"] != weights["sha256"]["here"]


def test_a_dice_outside_the_spread_is_no_reproduction(changed, again, data, capsys) -> None:
    def edit(provenance: dict[str, Any]) -> None:
        with_spread(0.01)(provenance)
        for name in ("mean", "min", "max"):
            provenance["seeds"]["val_mean_dice"][name] += 0.1

    assert reproduce(changed(edit, weights=0.25), data, again) == 5
    said = capsys.readouterr().out
    assert "outside the seed-to-seed spread" in said
    assert "a weight by 0.25 at most" in said


def test_a_bundle_that_was_changed_or_that_would_run_code_is_refused(bundle, data, tmp_path, capsys) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    config = json.loads((copy / "configs/train.json").read_text())
    marker = tmp_path / "marker"
    config["initialize"].append({"_target_": "os.system", "command": f"touch {marker}"})
    write_json(copy / "configs/train.json", config)
    assert reproduce(copy, data, tmp_path / "run") == 5
    write_sums(copy)
    assert reproduce(copy, data, tmp_path / "run") == 5
    assert "os.system" in capsys.readouterr().err
    assert not marker.exists()
    assert not (tmp_path / "run").exists()


def test_a_record_of_another_bundle_is_refused(changed, data, tmp_path, capsys) -> None:
    copy = changed(lambda provenance: provenance["weights"].update(tensors_sha256="0" * 64))
    assert reproduce(copy, data, tmp_path / "run") == 5
    assert "provenance.json" in capsys.readouterr().err


def test_a_record_that_is_none_is_said(changed, data, tmp_path, capsys) -> None:
    copy = changed(lambda provenance: provenance.update(seeds={"val_mean_dice": 3}))
    assert reproduce(copy, data, tmp_path / "run") in (3, 5)
    assert "provenance" in capsys.readouterr().err


def test_a_bundle_without_provenance_is_trained_all_the_same(changed, again, data, capsys) -> None:
    copy = changed(lambda provenance: None)
    (copy / "provenance.json").unlink()
    write_sums(copy)
    assert reproduce(copy, data, again) == 0
    assert "does not record where it was trained" in capsys.readouterr().err


def test_another_run_in_the_folder_is_refused(changed, again, data, capsys) -> None:
    copy = changed(lambda provenance: provenance["config"].update(seed=5))
    write_json(copy / "configs/train.json", json.loads((copy / "provenance.json").read_text())["config"])
    write_sums(copy)
    assert reproduce(copy, data, again) == 2
    assert "seed" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["configs/train.json", "configs/manifest.json"])
def test_a_bundle_that_does_not_say_how_it_was_trained(bundle, data, tmp_path, capsys, name: str) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    (copy / name).unlink()
    write_sums(copy)
    assert reproduce(copy, data, tmp_path / "run") == 2
    assert name in capsys.readouterr().err


def test_a_training_config_of_other_origin_is_said(bundle, data, tmp_path, capsys) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    (copy / "provenance.json").unlink()
    write_json(copy / "configs/train.json", {"epochs": 5})
    write_sums(copy)
    assert reproduce(copy, data, tmp_path / "run") == 2
    assert "not a training config of segpipe" in capsys.readouterr().err


def test_weights_are_compared_by_their_bytes() -> None:
    one = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor(3)}
    assert compare_weights(one, {name: one[name].clone() for name in ("b", "a")})["identical"]
    signed = compare_weights(one, {**one, "a": torch.tensor([-0.0, 1.0])})
    assert (signed["identical"], signed["differing"], signed["max_abs_difference"]) == (False, 1, 0.0)
    nan = compare_weights(one, {**one, "a": torch.tensor([float("nan"), 1.0])})
    assert (nan["differing"], nan["max_abs_difference"]) == (1, None)
    for other in ({**one, "c": torch.zeros(1)}, {**one, "a": torch.zeros(3)}, {**one, "b": torch.tensor(3.0)}):
        assert compare_weights(one, other)["max_abs_difference"] is None


def test_the_spread_is_two_standard_deviations_or_the_range() -> None:
    spread = {"mean": 0.8, "sd": 0.01, "min": 0.79, "max": 0.83, "n": 9}

    def within(value: float, spread: dict[str, Any] | None) -> bool | None:
        best = {"epoch": 1, "val_mean_dice": value}
        return compare_validation(best, best, spread)["within_spread"]

    assert within(0.781, spread)
    assert within(0.829, spread)  # in the range
    assert within(0.779, spread) is False
    assert within(0.831, spread) is False
    assert within(0.8, {**spread, "sd": None, "n": 1}) is None
    assert within(0.8, None) is None
    assert compare_validation(None, None, spread)["within_spread"] is None


def test_cores_and_memory_do_not_make_another_environment() -> None:
    hardware = {"processor": "one", "cores": 2, "memory_gib": 3.0, "cpu_capability": "AVX2", "gpus": []}
    here = {"versions": {"torch": "2"}, "git_revision": None, "system": "Linux x86_64", "hardware": hardware}
    more = {**here, "hardware": {**hardware, "cores": 8, "memory_gib": 9.0, "gpus": ["one"]}}
    assert differences(here, more) == []
    assert differences(here, more, on_gpu=True) == [Difference("GPUs", "", "one")]
    other = {**here, "hardware": {**hardware, "cpu_capability": "AVX512"}, "versions": {"monai": "1"}}
    assert [each.what for each in differences(here, other)] == ["torch", "vector instructions", "monai"]
