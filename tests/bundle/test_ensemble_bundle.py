"""One bundle of several members: what export writes, what stock MONAI and our engine make of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_ensemble import write_folds
from tiny_run import affines

import segpipe
from segpipe.bundle import Bundle, open_bundle
from segpipe.bundle.exporting.card import model_card
from segpipe.bundle.exporting.write import export
from segpipe.bundle.golden import record
from segpipe.bundle.inspection import inspect_bundle
from segpipe.bundle.pack import pack_bundle
from segpipe.bundle.supported_subset import read_inference, unsupported_features
from segpipe.bundle.tensors import load_network, read_state, tensors_sha256
from segpipe.bundle.verify import verify_bundle
from segpipe.cli.app import run
from segpipe.common.files import sha256_of
from segpipe.errors import OK, REFUSED, DataError

DOCS = Path(__file__).parents[2] / "docs/schemas"


@pytest.fixture(scope="module")
def folds(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folds(run_folder, tmp_path_factory.mktemp("cross") / "cv")


@pytest.fixture(scope="module")
def ensemble(folds: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(folds, tmp_path_factory.mktemp("bundles") / "tiny_ensemble")


def config(bundle: Bundle, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((bundle.root / "configs" / name).read_text())
    return document


@pytest.fixture(scope="module")
def one_image(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tilted volume of one window and a half, so that windows overlap."""
    folder = tmp_path_factory.mktemp("one")
    voxels = np.random.default_rng(5).integers(1, 400, (26, 18, 16)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, affines()["tilted"]), folder / "tilted.nii.gz")
    return folder


def stock(bundle: Bundle, images: Path, out: Path, *configs: str) -> None:
    import monai.bundle

    files = [str(bundle.root / "configs" / name) for name in configs or ("inference.json",)]
    monai.bundle.run(
        config_file=files if len(files) > 1 else files[0],
        bundle_root=str(bundle.root),
        dataset_dir=str(images),
        output_dir=str(out),
    )


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_one_bundle_of_all_members(ensemble: Bundle, folds: Path) -> None:
    assert ensemble.unsupported == () and ensemble.intact
    assert [Path(member.path).name for member in ensemble.members] == ["member_0.pt", "member_1.pt"]
    assert ensemble.weights.name == "member_0.pt" and not (ensemble.root / "models/model.pt").exists()
    document = config(ensemble, "inference.json")
    assert document["evaluator"]["_target_"] == "EnsembleEvaluator"
    assert ensemble.network_def == document["network_def"] and ensemble.network_def["_target_"] == "UNet"
    names = [step["_target_"] for step in document["postprocessing"]["transforms"]]
    assert names[:3] == ["Activationsd", "MeanEnsembled", "Invertd"]
    assert set(ensemble.model["files"]) == {"configs/inference.json", "models/member_0.pt", "models/member_1.pt"}
    members = ensemble.metadata["members"]
    assert [(member["file"], member["fold"]) for member in members] == [(f"models/member_{k}.pt", k) for k in range(2)]
    for member in members:
        assert member["sha256"] == sha256_of(ensemble.root / member["file"])
    recorded = json.loads((ensemble.root / "provenance.json").read_text())
    trained = [set(member["training"]) for member in recorded["members"]]
    assert trained[0] != trained[1] and set(recorded["split"]["training"]) == trained[0] | trained[1]
    assert recorded["split"]["validation"] == [] and recorded["best"] is None
    for member, fold in zip(recorded["members"], sorted(folds.glob("fold_*")), strict=True):
        assert member["weights"]["tensors_sha256"] == tensors_sha256(read_state(fold / "best.pt"))


def test_its_card_says_that_the_time_is_of_all_trainings(ensemble: Bundle) -> None:
    provenance = json.loads((ensemble.root / "provenance.json").read_text())
    provenance |= {"duration_seconds": 7200.0, "environment": {"hardware": {"processor": "a processor", "gpus": []}}}
    card = model_card(ensemble.metadata, provenance)
    assert "2.0 hours on a processor, the 2 trainings added up, also where they ran side by side" in card


def test_probabilities_are_averaged_and_not_logits(ensemble: Bundle, images: Path) -> None:
    """By a formula of our own: one window, so nothing but the networks and the mean decides."""
    volume = voxels(images / "plain.nii.gz").astype(np.float64)
    scaled = torch.from_numpy((volume - volume.mean()) / volume.std()).float()[None, None]
    logits = []
    for member in ensemble.members:
        network = load_network(ensemble.network_def or {}, read_state(Path(member.path))).eval()
        with torch.no_grad():
            logits.append(network(scaled)[0])
    mean = torch.stack([torch.softmax(each, 0) for each in logits]).mean(0)
    found = ensemble.segment(images / "plain.nii.gz", device="cpu").array
    assert (found == mean.argmax(0).numpy()).mean() > 0.9999
    of_logits = torch.stack(logits).mean(0).argmax(0).numpy()
    assert (found != of_logits).mean() > 0.001  # the comparison says something
    for each in logits:
        assert (found != each.argmax(0).numpy()).mean() > 0.001


@pytest.mark.parametrize("overlay", [(), ("inference_fast.json",)], ids=["stock", "fast"])
def test_stock_monai_and_our_engine_agree(
    ensemble: Bundle, one_image: Path, tmp_path: Path, overlay: tuple[str, ...]
) -> None:
    stock(ensemble, one_image, tmp_path, "inference.json", *overlay)
    found = ensemble.segment(one_image / "tilted.nii.gz", device="cpu").array
    theirs = voxels(tmp_path / "tilted_seg.nii.gz")
    assert len(np.unique(theirs)) == 3
    assert (found == theirs).mean() > 0.9995  # but for ties


def test_mirrored_windows_are_averaged_within_each_member(ensemble: Bundle, images: Path) -> None:
    volume = voxels(images / "plain.nii.gz").astype(np.float64)
    scaled = torch.from_numpy((volume - volume.mean()) / volume.std()).float()[None, None]
    mean = torch.zeros(3, 16, 16, 16)
    for member in ensemble.members:
        network = load_network(ensemble.network_def or {}, read_state(Path(member.path))).eval()
        with torch.no_grad():
            both = (network(scaled)[0] + network(scaled.flip(4))[0].flip(3)) / 2
        mean += torch.softmax(both, 0)
    found = ensemble.segment(images / "plain.nii.gz", device="cpu", mirror="z", mirror_untrained=True).array
    assert (found == mean.argmax(0).numpy()).mean() > 0.9999


def test_the_evaluate_config_measures_the_ensemble(ensemble: Bundle, images: Path, tmp_path: Path) -> None:
    (images.parent / "labels").mkdir(exist_ok=True)
    for path in images.glob("*.nii.gz"):  # the truth is what the ensemble says: any other model has less
        segmentation = ensemble.segment(path, device="cpu")
        segmentation.save(images.parent / "labels" / path.name)
    stock(ensemble, images.parent, tmp_path, "evaluate.json")
    rows = [line.split(",") for line in (tmp_path / "val_mean_dice_raw.csv").read_text().splitlines()[1:]]
    assert len(rows) == 4 and all(float(value) > 0.999 for row in rows for value in row[1:])


def test_it_passes_the_gate(ensemble: Bundle) -> None:
    verification = verify_bundle(ensemble.root)
    assert not verification.refused, verification.findings
    shown = inspect_bundle(ensemble.root)
    sizes = [(ensemble.root / member["file"]).stat().st_size for member in ensemble.metadata["members"]]
    assert shown["members"] == ensemble.metadata["members"] and shown["size"]["weights_bytes"] == sum(sizes)
    assert all(code["admitted"] for code in shown["code"])


def test_its_golden_case_is_of_all_members(ensemble: Bundle, tmp_path: Path) -> None:
    expected = np.load(ensemble.root / "golden/scores.npy")
    broken = Path(shutil.copytree(ensemble.root, tmp_path / "broken"))
    shutil.copy(broken / "models/member_0.pt", broken / "models/member_1.pt")  # the same member twice
    for root, close in ((ensemble.root, True), (broken, False)):
        (work := tmp_path / f"work{close}").mkdir()
        found = record(root, root / "golden/images", work)
        assert np.allclose(found.scores, expected, atol=1e-6) is close
        assert np.allclose(found.scores.sum(0), 1, atol=1e-5)


@pytest.mark.slow
def test_its_golden_case_comes_out_in_an_isolated_process(ensemble: Bundle) -> None:
    verification = verify_bundle(ensemble.root, replay=True)
    assert not verification.refused, verification.findings
    assert verification.replay and verification.replay.numbers and verification.replay.numbers["bit_equal"]


def test_the_metadata_follow_the_schema(ensemble: Bundle) -> None:
    schema = json.loads((Path(segpipe.__file__).parent / "schemas/bundle_metadata.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(ensemble.metadata)
    spoiled = {**ensemble.metadata, "members": ensemble.metadata["members"][:1]}
    assert not jsonschema.Draft202012Validator(schema).is_valid(spoiled)
    provenance = json.loads((DOCS / "provenance.schema.json").read_text())
    jsonschema.Draft202012Validator(provenance).validate(json.loads((ensemble.root / "provenance.json").read_text()))


def test_it_is_packed_as_one_file(ensemble: Bundle, images: Path, tmp_path: Path) -> None:
    packed = pack_bundle(ensemble.root, tmp_path / "e.zip", safetensors=True)
    with zipfile.ZipFile(packed.file) as archive:
        names = {Path(name).name for name in archive.namelist()}
    assert {"member_0.pt", "member_1.pt", "member_0.safetensors", "member_1.safetensors"} <= names
    again = open_bundle(tmp_path / "e.zip")
    one, other = (each.segment(images / "plain.nii.gz", device="cpu").array for each in (ensemble, again))
    assert np.array_equal(one, other)


CLOSED = {
    "a checkpoint twice": lambda c: c["handlers"][1].update(load_path=c["handlers"][0]["load_path"]),
    "two checkpoints of one network": lambda c: c["handlers"][1].update(load_dict={"model": "@networks#0"}),
    "a network without weights": lambda c: c["handlers"].pop(),
    "a network of its own": lambda c: c["networks"][1].update(self={"_target_": "UNet"}),
    "other keys": lambda c: c["evaluator"].update(pred_keys=["member_1", "member_0"]),
    "a mean with weights": lambda c: c["postprocessing"]["transforms"][1].update(weights=[1, 2]),
    "activation of one member": lambda c: c["postprocessing"]["transforms"][0].update(keys=["member_0"]),
    "no mean": lambda c: c["postprocessing"]["transforms"].pop(1),
    "a vote": lambda c: c["postprocessing"]["transforms"][1].update(_target_="VoteEnsembled"),
    "weights from elsewhere": lambda c: c["handlers"][1].update(load_path="$@bundle_root + '/other/member_1.pt'"),
    "a part of the weights": lambda c: c["handlers"][1].update(strict=False),
}


@pytest.mark.parametrize("change", CLOSED)
def test_another_ensemble_is_outside_the_closed_form(ensemble: Bundle, change: str) -> None:
    document = config(ensemble, "inference.json")
    CLOSED[change](document)
    found = [*unsupported_features(document), *read_inference(document)[1]]
    assert found, change
    assert not [*unsupported_features(ensemble.inference), *read_inference(ensemble.inference)[1]]


def test_it_is_no_part_of_another_ensemble(
    ensemble: Bundle, bundle: Bundle, one_image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its members' probabilities are averaged, the scores of several bundles are: there is no one mean of both."""
    for first, second in ((ensemble, bundle), (bundle, ensemble)):
        words = ["predict", first.root, one_image, tmp_path / "out", "--ensemble", second.root]
        assert run([str(word) for word in words]) == REFUSED
        said = " ".join(capsys.readouterr().err.split())
        assert "a bundle that is an ensemble itself cannot be part of another one" in said
        assert "export the runs together" in said
    assert not (tmp_path / "out").exists()


def test_a_member_that_is_not_there_is_named(ensemble: Bundle, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(ensemble.root, tmp_path / "broken"))
    (broken / "models/member_1.pt").unlink()
    (broken / "SHA256SUMS").unlink()
    with pytest.raises(DataError, match="has no weights") as caught:
        open_bundle(broken)
    assert "member_1.pt" in str(caught.value.path)


@pytest.mark.slow
def test_a_process_of_stock_monai_gives_what_predict_gives(ensemble: Bundle, one_image: Path, tmp_path: Path) -> None:
    arguments = {
        "--config_file": ensemble.root / "configs/inference.json",
        "--bundle_root": ensemble.root,
        "--dataset_dir": one_image,
        "--output_dir": tmp_path / "stock",
    }
    command = [sys.executable, "-m", "monai.bundle", "run", *(str(word) for pair in arguments.items() for word in pair)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert run(["predict", str(ensemble.root), str(one_image), str(tmp_path / "ours"), "--device", "cpu"]) == OK
    theirs, ours = voxels(tmp_path / "stock/tilted_seg.nii.gz"), voxels(tmp_path / "ours/tilted/segmentation.nii.gz")
    assert (theirs == ours).mean() > 0.9995
    result = json.loads((tmp_path / "ours/tilted/result.json").read_text())
    assert result["engine"] == "streaming" and result["route"] == "typed"
    assert set(result["model"]["files"]) == set(ensemble.model["files"])


@pytest.mark.slow
def test_monais_own_commands_take_one_member(ensemble: Bundle, tmp_path: Path) -> None:
    from monai.bundle import ckpt_export, verify_net_in_out

    metadata, inference = (str(ensemble.root / "configs" / name) for name in ("metadata.json", "inference.json"))
    verify_net_in_out("network_def", metadata, inference, device="cpu")
    member = str(ensemble.root / "models/member_1.pt")
    ckpt_export("network_def", str(tmp_path / "m.ts"), member, metadata, inference)
    assert (tmp_path / "m.ts").stat().st_size > 1000
