"""A training that begins with a bundle: what it takes, what it keeps, and what its parent may not have seen."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from segpipe.bundle import Seen, open_bundle, seen_by_bundle, tensors_sha256
from segpipe.bundle.vet.documents import write_sums
from segpipe.cli.app import run
from segpipe.common.files import sha256_of, write_json
from segpipe.data.manifest import Manifest
from segpipe.data.phantom import make_phantom
from segpipe.errors import RefusedError, UsageError
from segpipe.training.adaptation import Names
from segpipe.training.fine_tuning import FineTuning, InitialOfParent
from segpipe.training.fragments import Fragment
from segpipe.training.parent import Parent, ParentWeights
from test_schemas import validate
from tiny_data import TASK, train_arguments
from tiny_folds import read, stand_in
from whole_commands import start, wait_for

LABELS = ["background", "liver", "kidney", "lesion"]
QUICK = ["--epochs", "1", "--threads", "1", "--set", "val_interval=1", "--set", "batch_size=2"]


def write_set(folder: Path, first: int, cases: int = 4, labels: list[str] | None = None, name: str = "") -> Path:
    """Generated scans whose voxels follow from their numbers, with the hashes of an import, in two folds."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    training = []
    for number in range(first, first + cases):
        paths = [f"{part}/scan_{number}.nii.gz" for part in ("images", "labels")]
        phantom = make_phantom(number, shape=(20, 18, 16), spacing_mm=(3.0, 3.0, 3.5))
        phantom.write(*(folder / path for path in paths))
        hashes = {path: sha256_of(folder / path) for path in paths}
        case = {"id": f"scan_{number}", "image": paths[0], "label": paths[1], "fold": number % 2, "sha256": hashes}
        training.append(case)
    document = {
        "name": name or folder.name,
        "modality": {"0": "MRI"},
        "labels": {str(value): label for value, label in enumerate(labels or LABELS)},
        "training": training,
    }
    write_json(folder / "manifest.json", Manifest.model_validate(document).dump())
    (folder / "task.yaml").write_text(TASK)
    return folder / "manifest.json"


def fine_tune(manifest: Path, parent: Path, out: Path, *more: str) -> int:
    return run(["train", str(manifest), "--from", str(parent), "--out", str(out), *QUICK, *more])


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that was trained on scans 0 to 3, and chosen by the even ones."""
    root = tmp_path_factory.mktemp("parent")
    assert run(train_arguments(write_set(root / "first", 0), root / "run", "--epochs", "1")) == 0
    assert run(["export", str(root / "run"), str(root / "organs")]) == 0
    return root / "organs"


@pytest.fixture(scope="module")
def child(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on other scans of the same labels."""
    root = tmp_path_factory.mktemp("child")
    assert fine_tune(write_set(root / "second", 10), parent, root / "run") == 0
    return root / "run"


def test_it_begins_with_the_weights_of_the_bundle_and_prepares_images_as_it_did(child: Path, parent: Path) -> None:
    record, config = read(child / "run.json"), read(child / "config.json")
    theirs = weights(parent / "models/model.pt")
    assert tensors_sha256(weights(child / "initial.pt")) == tensors_sha256(theirs)
    assert tensors_sha256(weights(child / "best.pt")) != tensors_sha256(theirs)
    validate("run", record)
    bundle = open_bundle(parent)
    begun = record["parent"]
    assert (begun["name"], begun["version"], begun["sha256"]) == ("organs", "0.1.0", bundle.sha256)
    assert begun["initial"]["taken"] == len(theirs) and begun["overlap"] == {"is_known": True, "cases": {}}
    trained = read(parent / "configs/train.json")
    for name in ("network_def", "patch_size", "deterministic_transforms", "patch_divisor"):
        assert config[name] == trained[name]
    assert record["origins"]["network_def"] == "organs 0.1.0"
    assert config["parent_sha256"] == bundle.sha256


def test_the_parent_is_vetted_and_a_changed_one_refused(child: Path, parent: Path, tmp_path, capsys) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(parent, copy)
    config = read(copy / "configs/train.json")
    config["network_def"]["act"] = {"_target_": "os.system", "command": f"touch {tmp_path}/marker"}
    write_json(copy / "configs/train.json", config)
    manifest = child / "manifest.json"
    data = ("--data", str(child.parent / "second"))
    assert fine_tune(manifest, copy, tmp_path / "run", *data) == 5
    write_sums(copy)
    assert fine_tune(manifest, copy, tmp_path / "run", *data) == 5
    assert "os.system" in capsys.readouterr().err
    assert not (tmp_path / "marker").exists() and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_frozen_encoder_stays_bit_for_bit_also_in_the_average_and_after_a_kill(
    child: Path, parent: Path, tmp_path: Path, capsys
) -> None:
    words = ["--data", str(child.parent / "second"), "--freeze", "encoder", "--set", "averaging=0.9", "--epochs", "3"]
    assert fine_tune(child / "manifest.json", parent, tmp_path / "whole", *words) == 0
    assert "frozen: encoder (model.0, model.1.submodule)" in capsys.readouterr().err
    begin = ["train", str(child / "manifest.json"), "--from", str(parent), "--out", str(tmp_path / "killed"), *QUICK]
    process = start(*begin, *words)
    wait_for(process, "epoch 1/3")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert run(["train", "--resume", str(tmp_path / "killed")]) == 0
    theirs, ours = weights(parent / "models/model.pt"), weights(tmp_path / "whole/best.pt")
    last = weights(tmp_path / "whole/last.pt")
    for state in (ours, last["network"], last["averaged"]):
        kept = {name for name in theirs if torch.equal(state[name], theirs[name])}
        assert kept == {name for name in theirs if name.startswith(("model.0.", "model.1."))}
    again = weights(tmp_path / "killed/last.pt")
    for part in ("network", "averaged"):
        assert tensors_sha256(again[part]) == tensors_sha256(last[part])


@pytest.mark.slow
def test_labels_are_taken_by_their_names_and_new_ones_begin_anew(parent: Path, tmp_path: Path, capsys) -> None:
    labels = ["background", "kidney", "cyst", "liver"]
    manifest = write_set(tmp_path / "other", 20, labels=labels)
    assert fine_tune(manifest, parent, tmp_path / "run", "--dry-run") == 0
    said = capsys.readouterr().err
    assert "outputs that begin anew: cyst" in said and "adapted: model.2.conv.weight, model.2.conv.bias" in said
    assert not (tmp_path / "run").exists()
    assert fine_tune(manifest, parent, tmp_path / "run") == 0
    initial, theirs = weights(tmp_path / "run/initial.pt"), weights(parent / "models/model.pt")
    bias = "model.2.conv.bias"
    assert torch.equal(initial[bias][[0, 1, 3]], theirs[bias][[0, 2, 1]])
    assert read(tmp_path / "run/run.json")["parent"]["initial"]["adapted"] == ["model.2.conv.weight", bias]
    assert fine_tune(manifest, parent, tmp_path / "never", "--freeze", "decoder") == 2


@pytest.mark.parametrize("part", ["validation", pytest.param("test", marks=pytest.mark.slow), "patient"])
def test_cases_that_the_parent_saw_are_refused_whatever_they_are_called(
    parent: Path, tmp_path: Path, capsys, part: str
) -> None:
    """Scan 1 was trained on by the parent; here it is called otherwise, or is of the patient of scan 30."""
    path = write_set(tmp_path / "mixed", 30, cases=3)
    make_phantom(1, shape=(20, 18, 16), spacing_mm=(3.0, 3.0, 3.5)).write(
        tmp_path / "mixed/images/again.nii.gz", tmp_path / "mixed/labels/again.nii.gz"
    )
    document = read(path)
    again = {"id": "again", "image": "images/again.nii.gz", "label": "labels/again.nii.gz", "fold": 0}
    if part == "test":
        document["test"] = [{name: value for name, value in again.items() if name != "fold"}]
    else:
        document["training"].append({**again, "fold": 1 if part == "patient" else 0})
    if part == "patient":
        document["training"][0]["patient_id"] = document["training"][-1]["patient_id"] = "somebody"
    write_json(path, document)
    assert fine_tune(path, parent, tmp_path / "run") == 5
    said = capsys.readouterr().err
    found = "scan_30 (of a patient" if part == "patient" else "again (trained on)"
    assert found in said and "--allow-seen" in said and "somebody" not in said
    assert not (tmp_path / "run").exists()
    if part != "test":
        return
    assert fine_tune(path, parent, tmp_path / "run", "--allow-seen") == 0
    assert "figures are too good: again" in capsys.readouterr().err
    assert read(tmp_path / "run/run.json")["parent"]["overlap"]["cases"] == {"again": "training"}
    assert run(["export", str(tmp_path / "run"), str(tmp_path / "bundle")]) == 0
    assert "whose figures are too good: again" in (tmp_path / "bundle/docs/README.md").read_text()
    assert read(tmp_path / "bundle/configs/metadata.json")["training"]["parent"]["seen"] == ["again"]


def test_images_that_are_prepared_in_another_way_are_refused(child: Path, parent: Path, tmp_path, capsys) -> None:
    task = tmp_path / "task.yaml"
    spacing = "  - {_target_: Spacingd, keys: [image, label], pixdim: [2, 2, 2.5], mode: [bilinear, nearest]}\n"
    task.write_text(TASK.replace("  - {_target_: Norm", spacing + "  - {_target_: Norm").replace("RAS", "LPS"))
    words = ["--task", str(task), "--data", str(child.parent / "second"), "--dry-run"]
    assert fine_tune(child / "manifest.json", parent, tmp_path / "run", *words) == 5
    said = capsys.readouterr().err
    assert "orientation: here LPS, organs RAS" in said and "spacing in mm: here 2 x 2 x 2.5, organs none" in said
    assert "intensities" not in said.split("expected")[0]
    assert fine_tune(child / "manifest.json", parent, tmp_path / "run", *words, "--allow-other-preprocessing") == 0
    assert "prepared in another way than the parent's: orientation" in capsys.readouterr().err
    same = ["--task", str(child.parent / "second/task.yaml"), *words[2:]]
    assert fine_tune(child / "manifest.json", parent, tmp_path / "run", *same) == 0


def test_what_does_not_fit_is_refused(child: Path, parent: Path, tmp_path: Path, capsys) -> None:
    manifest, data = child / "manifest.json", ("--data", str(child.parent / "second"))
    assert fine_tune(manifest, parent, tmp_path / "run", *data, "--network", "segresnet") == 2
    assert "no weights of the parent fit" in capsys.readouterr().err
    assert fine_tune(manifest, parent, tmp_path / "run", *data, "--member", "1") == 2
    assert "no such member" in capsys.readouterr().err
    assert run(train_arguments(child.parent / "second/manifest.json", tmp_path / "run", "--freeze", "encoder")) == 2
    assert "--from BUNDLE" in capsys.readouterr().err
    document = read(manifest)
    document["modality"] = {"0": "CT"}
    write_json(tmp_path / "manifest.json", document)
    assert fine_tune(tmp_path / "manifest.json", parent, tmp_path / "run", *data) == 2
    assert "segpipe plan" in capsys.readouterr().err
    assert run(["train", "--resume", str(child), "--from", str(parent)]) == 2


def test_weights_that_were_changed_do_not_go_on(child: Path, tmp_path: Path, capsys) -> None:
    copy = tmp_path / "run"
    shutil.copytree(child, copy)
    record = read(copy / "run.json")
    write_json(copy / "run.json", {**record, "status": "interrupted"})
    state = weights(copy / "initial.pt")
    torch.save({**state, "model.2.conv.bias": state["model.2.conv.bias"] + 1}, copy / "initial.pt")
    assert run(["train", "--resume", str(copy)]) == 5
    assert "were changed" in capsys.readouterr().err
    (copy / "initial.pt").unlink()
    assert run(["train", "--resume", str(copy)]) == 3


@pytest.mark.slow
def test_each_fold_begins_with_a_parent_that_did_not_see_it(
    child: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    stand_in(monkeypatch)
    again = [*QUICK, "--folds", "all", "--out"]
    first = parent.parent / "first/manifest.json"
    assert run(["train", str(first), "--from", str(parent), *again, str(tmp_path / "own")]) == 5
    assert "fold 0 and the test set" in capsys.readouterr().err
    words = [
        "train",
        str(child.parent / "second/manifest.json"),
        "--from",
        str(parent),
        *again,
        str(tmp_path / "folds"),
    ]
    assert run(words) == 0
    for fold in (0, 1):
        record = read(tmp_path / f"folds/fold_{fold}/run.json")
        assert record["parent"]["initial"]["taken"] == 6 and record["status"] == "finished"
    bundle = tmp_path / "ensemble"
    assert run(["export", str(tmp_path / "folds"), str(bundle)]) == 0
    provenance = read(bundle / "provenance.json")
    validate("provenance", provenance)
    assert [member["parent"]["name"] for member in provenance["members"]] == ["organs", "organs"]


@pytest.mark.slow
def test_a_bundle_names_its_parents_and_all_that_they_saw(child: Path, parent: Path, tmp_path: Path, capsys) -> None:
    bundle = tmp_path / "tuned"
    assert run(["export", str(child), str(bundle)]) == 0
    provenance, metadata = read(bundle / "provenance.json"), read(bundle / "configs/metadata.json")
    validate("provenance", provenance)
    validate("bundle_metadata", metadata)
    assert provenance["parent"]["sha256"] == metadata["training"]["parent"]["sha256"] == open_bundle(parent).sha256
    card = (bundle / "docs/README.md").read_text()
    assert "| began with | organs 0.1.0" in card and "--parent PARENT" in card
    before, after = seen_by_bundle(parent), seen_by_bundle(bundle)
    assert before.is_known and after.is_known
    assert len(before.images) == 4 and len(after.images) == 8 and set(before.images) < set(after.images)
    assert run(["bundle", "verify", str(bundle)]) == 0
    capsys.readouterr()
    assert run(["bundle", "inspect", str(bundle), "--json"]) == 0
    inspected = json.loads(capsys.readouterr().out)
    validate("bundle", inspected)
    assert inspected["parent"]["name"] == "organs"
    third = write_set(tmp_path / "third", 40)  # whose scan 2 is one of the first parent
    document = read(third)
    shutil.copy(parent.parent / "first/images/scan_2.nii.gz", tmp_path / "third/images/scan_40.nii.gz")
    del document["training"][0]["sha256"]
    write_json(third, document)
    assert fine_tune(third, bundle, tmp_path / "run") == 5
    assert "scan_40 (chosen by)" in capsys.readouterr().err


@pytest.mark.slow
def test_it_is_reproduced_with_its_parent_which_is_found_by_its_weights(
    child: Path, parent: Path, tmp_path: Path, capsys
) -> None:
    bundle = tmp_path / "tuned"
    assert run(["export", str(child), str(bundle)]) == 0
    words = ["reproduce", str(bundle), "--data", str(child.parent / "second"), "--out", str(tmp_path / "again")]
    assert run(words) == 2
    assert "organs 0.1.0" in capsys.readouterr().err
    (tmp_path / "shelf").mkdir()
    shutil.copytree(bundle, tmp_path / "shelf/another")
    assert run([*words, "--parent", str(tmp_path / "shelf")]) == 5
    said = capsys.readouterr().err
    assert "found: tuned 0.1.0" in said and "organs 0.1.0" in said
    shutil.copytree(parent, tmp_path / "shelf/of any name")
    assert run([*words, "--parent", str(tmp_path / "shelf")]) == 0
    assert read(tmp_path / "again/reproduction.json")["verdict"] == "bit-identical"
    assert run(["reproduce", str(parent), "--data", str(parent.parent / "first"), "--parent", str(bundle)]) == 2
    assert "began with no bundle" in capsys.readouterr().err


def test_a_bundle_of_other_origin_is_a_parent_of_whom_nothing_is_known(child, parent, tmp_path, capsys) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(parent, foreign)
    for name in ("provenance.json", "configs/train.json", "configs/manifest.json", "SHA256SUMS"):
        (foreign / name).unlink()
    manifest, data = child / "manifest.json", ("--data", str(child.parent / "second"), "--dry-run")
    assert fine_tune(manifest, foreign, tmp_path / "run", *data) == 2
    assert "segpipe plan" in capsys.readouterr().err
    task = ("--task", str(child.parent / "second/task.yaml"))
    assert fine_tune(manifest, foreign, tmp_path / "run", *data, *task) == 0
    said = capsys.readouterr().err
    assert "6 taken" in said and "is not known for all of them" in said


def ensemble(*seen: Seen) -> Parent:
    state = {"weight": torch.zeros(2)}
    weights = tuple(ParentWeights(f"models/member_{k}.pt", state, str(k), each) for k, each in enumerate(seen))
    names = Names(("MRI",), ("background", "liver"), "softmax")
    return Parent({"name": "several", "version": "1", "sha256": "0" * 64}, names, weights, Fragment({}, ""))


def test_of_an_ensemble_the_member_that_did_not_see_the_fold_is_taken() -> None:
    hashes = {fold: f"{fold}" * 64 for fold in range(3)}
    cases = [
        {"id": f"c{fold}", "image": "i.nii", "label": "l.nii", "fold": fold, "sha256": {"i.nii": hashes[fold]}}
        for fold in range(3)
    ]
    labels = {"0": "background", "1": "liver"}
    dataset = Manifest.model_validate({"name": "x", "modality": {"0": "MRI"}, "labels": labels, "training": cases})
    seen = [Seen({hashes[other]: "training" for other in hashes if other != fold}, {}, True) for fold in hashes]

    def chosen(parent: Parent, fold: int | None, **asked: Any) -> str:
        initial = InitialOfParent(parent, FineTuning(Path("x"), **asked), dataset, Path())
        return initial.chosen(fold)[0].file

    for fold in hashes:
        assert chosen(ensemble(*seen), fold) == f"models/member_{fold}.pt"
    with pytest.raises(RefusedError, match="saw cases"):
        chosen(ensemble(*seen), 0, member=1)
    assert chosen(ensemble(*seen), 0, member=1, allow_seen=True) == "models/member_1.pt"
    for parent, fold in ((ensemble(*seen), None), (ensemble(Seen({}, {}, True), Seen({}, {}, True)), 0)):
        with pytest.raises(RefusedError, match="ensemble") as refused:
            chosen(parent, fold)
        assert "--member" in str(refused.value.hint)
        assert chosen(parent, fold, member=1) == "models/member_1.pt"
    with pytest.raises(UsageError, match="no such member"):
        chosen(ensemble(*seen), 0, member=3)


def test_a_case_without_a_hash_is_known_by_its_id_in_a_data_set_of_the_same_name() -> None:
    seen = Seen({"a" * 64: "training"}, {"x": {"c1": "validation"}}, False)
    assert seen.how("x", "c1", ["b" * 64]) == "validation"
    assert seen.how("y", "c1", ["b" * 64]) is None
    assert seen.how("y", "c1", ["a" * 64]) == "training"
    both = seen | Seen({"a" * 64: "patient", "c" * 64: "patient"}, {"x": {"c1": "training"}}, True)
    assert both.images == {"a" * 64: "training", "c" * 64: "patient"} and not both.is_known
    assert both.cases == {"x": {"c1": "training"}}
    assert Seen.of_document(json.loads(json.dumps(both.document()))) == both


@pytest.mark.slow
def test_several_seeds_begin_with_the_bundle(child: Path, parent: Path, tmp_path: Path) -> None:
    words = ["--data", str(child.parent / "second"), "--seeds", "2"]
    assert fine_tune(child / "manifest.json", parent, tmp_path / "seeds", *words) == 0
    begun, ended = (
        [tensors_sha256(weights(tmp_path / f"seeds/seed{seed}" / name)) for seed in (0, 1)]
        for name in ("initial.pt", "best.pt")
    )
    assert set(begun) == {tensors_sha256(weights(parent / "models/model.pt"))}
    assert ended[0] != ended[1]
    records = [read(tmp_path / f"seeds/seed{seed}/run.json") for seed in (0, 1)]
    assert [record["seed"] for record in records] == [0, 1]
    assert len({record["parent"]["sha256"] for record in records}) == 1
    assert read(tmp_path / "seeds/seeds.json")["val_mean_dice"]["n"] == 2


@pytest.mark.slow
def test_a_budget_decides_how_long_a_bundle_is_fine_tuned(child: Path, parent: Path, tmp_path: Path, capsys) -> None:
    words = ["train", str(child / "manifest.json"), "--from", str(parent), "--data", str(child.parent / "second")]
    words += ["--budget", "8s", "--threads", "1", "--set", "batch_size=2", "--out", str(tmp_path / "run")]
    assert run(words) == 0
    said = capsys.readouterr().err
    assert "about" in said and "of 8 s" in said
    record, config = read(tmp_path / "run/run.json"), read(tmp_path / "run/config.json")
    assert record["parent"]["name"] == "organs"
    assert config["steps_per_epoch"] > 0 and record["epochs"] == config["max_epochs"]
    assert tensors_sha256(weights(tmp_path / "run/initial.pt")) == tensors_sha256(weights(parent / "models/model.pt"))
