"""What export writes: a whole bundle by MONAI's specification, or nothing and a clear error."""

from __future__ import annotations

import getpass
import gzip
import json
import platform
import re
import shutil
import socket
import struct
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tiny_run import record_as_trained, write_evaluation

import segpipe
from segpipe.bundle import Bundle, open_bundle
from segpipe.bundle.exporting.bundle_configs import train_config
from segpipe.bundle.exporting.write import export
from segpipe.cli.app import run
from segpipe.common.files import write_json
from segpipe.errors import DataError, RefusedError, UsageError

SCHEMA = Path(segpipe.__file__).parent / "schemas" / "bundle_metadata.schema.json"
FILES = [
    "LICENSE",
    "SHA256SUMS",
    "configs/evaluate.json",
    "configs/inference.json",
    "configs/inference_fast.json",
    "configs/logging.conf",
    "configs/manifest.json",
    "configs/metadata.json",
    "configs/train.json",
    "docs/README.md",
    "docs/data_license.txt",
    "docs/example.png",
    "golden/golden.json",
    "golden/images/image.nii.gz",
    "golden/labels.nii.gz",
    "golden/scores.npy",
    "models/model.pt",
    "provenance.json",
]
ALLOWED = [
    r"\$@bundle_root \+ '/[\w/.]+'",
    r"\$\[\{'image': [^@]+\} for p in sorted\(@files\)\]",
    r"\$@evaluator\.run\(\)",
]


def strings(value: Any) -> Iterator[tuple[str, str]]:
    """Every key with a string in a config."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from [(str(key), item)] if isinstance(item, str) else strings(item)


def config(bundle: Bundle, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((bundle.root / "configs" / name).read_text())
    return document


def test_it_is_complete_and_intact(bundle: Bundle) -> None:
    found = sorted(str(path.relative_to(bundle.root)) for path in bundle.root.rglob("*") if path.is_file())
    assert found == FILES
    assert bundle.intact is True and bundle.unsupported == ()
    checked = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=bundle.root, check=False)
    assert checked.returncode == 0
    assert [path.name for path in bundle.root.parent.iterdir()] == [bundle.root.name]


@pytest.mark.parametrize("name", ["inference.json", "evaluate.json"])
def test_stock_configs_are_closed(bundle: Bundle, name: str) -> None:
    document = config(bundle, name)
    for key, text in strings(document):
        if text.startswith("$"):
            assert any(re.fullmatch(pattern, text) for pattern in ALLOWED), text
        assert not text.startswith(("%", "/")) and "import" not in text
        if key == "_target_":
            assert text.startswith(("monai.", "torch.")) or "." not in text, text
    assert platform.node() not in json.dumps(document)


def test_train_config_names_no_place_of_this_machine(bundle: Bundle, run_folder: Path) -> None:
    document = config(bundle, "train.json")
    for _, text in strings(document):
        assert not text.startswith("/") and str(run_folder) not in text and "/data/of/mine" not in text
    assert document["manifest"] == "$@bundle_root + '/configs/manifest.json'"
    assert bundle.metadata["config_requirements"]["train.json"] == [f"segpipe=={segpipe.__version__}"]
    from monai.bundle import ConfigParser

    parser = ConfigParser(document)
    parser["bundle_root"] = str(bundle.root)
    assert parser.get_parsed_content("manifest") == f"{bundle.root}/configs/manifest.json"


def test_a_training_from_a_store_is_exported_as_one_that_makes_its_own() -> None:
    assert train_config({"store": "/data/of/mine/store"}) == {"store": "$@run_dir + '/store'"}
    assert train_config({"store": None}) == {"store": None} and train_config({"seed": 3}) == {"seed": 3}


@pytest.mark.parametrize("name", ["inference.json", "evaluate.json"])
def test_monai_finds_every_property_that_inference_must_have(
    bundle: Bundle, images: Path, tmp_path: Path, name: str
) -> None:
    from monai.bundle import ConfigWorkflow

    workflow = ConfigWorkflow(
        str(bundle.root / "configs" / name),
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(bundle.root),
        dataset_dir=str(images),
        output_dir=str(tmp_path),
    )
    workflow.initialize()
    assert not workflow.check_properties()
    assert len(workflow.dataset) == 4


def test_monai_verifies_metadata_and_network(bundle: Bundle) -> None:
    from monai.bundle import verify_metadata, verify_net_in_out

    meta = str(bundle.root / "configs" / "metadata.json")
    verify_metadata(meta_file=meta, filepath=str(SCHEMA))
    inference = str(bundle.root / "configs" / "inference.json")
    verify_net_in_out("network_def", meta_file=meta, config_file=inference, device="cpu")


@pytest.mark.parametrize("key", ["version", "network_data_format", "changelog", "authors", "task"])
def test_the_schema_refuses_what_lacks_a_key(bundle: Bundle, key: str) -> None:
    import jsonschema

    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(bundle.metadata, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({name: value for name, value in bundle.metadata.items() if name != key}, schema)


def test_weights_are_plain_and_bytes_repeat(bundle: Bundle, run_folder: Path, tmp_path: Path) -> None:
    import torch

    state = torch.load(bundle.weights, weights_only=True)
    expected = torch.load(run_folder / "best.pt", weights_only=True)
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) and state[name].is_contiguous() for name in state)
    assert export(run_folder, tmp_path / bundle.root.name).sha256 == bundle.sha256


def test_no_patient_leaves_with_the_bundle(bundle: Bundle) -> None:
    from segpipe.data.manifest import load_manifest

    content = b"".join(path.read_bytes() for path in bundle.root.rglob("*") if path.is_file())
    assert b"Jane Doe" not in content
    assert b"ROENTGEN" not in content
    exported = load_manifest(bundle.root / "configs" / "manifest.json")
    assert {case.patient_id for case in exported.training} == {"p00001"}
    assert exported.folds() == [0, 1]


def test_monai_keeps_what_the_metadata_requires(bundle: Bundle) -> None:
    import warnings

    from monai.bundle import ConfigParser

    parser = ConfigParser()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parser.read_meta(bundle.root / "configs" / "metadata.json")
        parser.parse()
    required = parser["_meta_"]["required_packages_version"]
    assert required == bundle.metadata["required_packages_version"]
    assert {"fire", "nibabel", "pytorch-ignite"} <= set(required)


def test_the_card_says_what_a_reader_needs(bundle: Bundle) -> None:
    card = (bundle.root / "docs" / "README.md").read_text()
    for words in ("Not a medical device", "left \\| part", "CC0-1.0", "monai.bundle run", "segpipe predict", "0.500"):
        assert words in card
    assert "Not measured on held-out cases" in card


def test_results_come_with_their_interval(run_folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    figure = {"mean": 0.91234567, "low": 0.9, "high": 0.92, "median": 0.915, "n": 40}
    nothing = {**dict.fromkeys(figure), "n": 0}
    metrics = {name: figure for name in ("dice", "iou", "nsd", "hd_mm", "hd95_mm", "assd_mm")}
    evaluation = {
        "split": "test",
        "fold": None,
        "tolerance_mm": 1.0,
        "manifest_sha256": "0" * 64,
        "bootstrap": {"draws": 10, "seed": 0, "unit": "patient", "level": 0.95},
        "summary": {
            "overall": {"counts": {"cases": 40, "patients": 20, "missing": 0, "failed": 1}, "metrics": metrics},
            "labels": {
                "1": {"name": "left | part", "counts": {}, "metrics": metrics},
                "2": {"name": "right part", "counts": {}, "metrics": {**metrics, "hd95_mm": nothing}},
            },
        },
        "cases": [{"id": f"other_{index}", "mean_dice": 0.9} for index in range(40)],
    }
    write_evaluation(tmp_path, evaluation, bundle)
    bundle = export(run_folder, tmp_path / "measured", evaluation=tmp_path)
    assert bundle.metadata["eval_metrics"] == {"val_mean_dice": 0.5, "test_mean_dice": 0.9123}
    card = (bundle.root / "docs" / "README.md").read_text()
    assert "| Dice | mean of labels | 0.912 [0.900, 0.920] | 0.915 | 40 |" in card
    assert "95% bootstrap interval over patients" in card and "1 failed" in card
    assert "segpipe evaluate measured/configs/manifest.json PREDICTIONS --out METRICS --split test" in card
    assert "| HD95 (mm) | right part | - | - | 0 |" in card
    import jsonschema

    jsonschema.validate(bundle.metadata, json.loads(SCHEMA.read_text()))
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(DataError, match="not an evaluation"):
        export(run_folder, tmp_path / "other", evaluation=tmp_path)
    assert not (tmp_path / "other").exists()


def test_command_line(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bundle"
    arguments = ["export", str(run_folder), str(out), "--name", "liver_mri", "--version", "1.2.0", "--json"]
    assert run(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["command"] == "export" and document["folder"] == str(out)
    assert (document["bundle"]["name"], document["bundle"]["version"]) == ("liver_mri", "1.2.0")
    assert run(arguments) == 2
    assert "taken" in json.loads(capsys.readouterr().out)["error"]["message"]
    (out / "extra.txt").write_text("left behind")
    assert run([*arguments, "--overwrite"]) == 0
    assert not (out / "extra.txt").exists()
    capsys.readouterr()
    assert run([*arguments[:-1], "--overwrite"]) == 0
    captured = capsys.readouterr()
    assert "monai.bundle run" in captured.out.replace("\n", " ")
    assert all("no code is known for this name" in line for line in captured.err.splitlines())


def test_a_folder_of_something_else_is_never_replaced(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert run(["export", str(run_folder), str(tmp_path / "mine"), "--overwrite"]) == 2
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("change", "words", "code"),
    [
        ({"network_def": {"_target_": "segpipe.components.Own"}}, "cannot run in stock MONAI", 2),
        ({"network_def": {"_target_": "mypackage.Net"}}, "cannot run in stock MONAI", 2),
        ({"network_def": {"_target_": "UNet", "spatial_dims": "$1+2"}}, "cannot be exported", 2),
        ({"network_def": {"_target_": "BasicUNet", "spatial_dims": 3}}, "do not fit the network", 3),
        ({"activation": "sigmoid"}, "do not make one label map", 2),
        ({"deterministic_transforms": [{"_target_": "RandFlipd", "keys": "image"}]}, "RandFlipd", 2),
        ({"somewhere": "/home/me/data"}, "a path of this machine", 2),
        ({"somewhere": "$torch.load('/home/me/first.pt')"}, "a path of this machine", 2),
    ],
)
def test_what_cannot_run_in_stock_monai_is_refused(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], words: str, code: int
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("manifest.json", "best.pt"):
        (folder / name).symlink_to(run_folder / name)
    shutil.copy(run_folder / "run.json", folder)
    document = json.loads((run_folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**document, **change}))
    record_as_trained(folder)
    assert run(["export", str(folder), str(tmp_path / "bundle")]) == code
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_not_a_run_and_damaged_weights(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a finished run"):
        export(tmp_path, tmp_path / "bundle")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("run.json", "manifest.json", "config.json"):
        (folder / name).symlink_to(run_folder / name)
    (folder / "best.pt").write_bytes((run_folder / "best.pt").read_bytes()[:200])
    with pytest.raises(DataError, match="weights cannot be read"):
        export(folder, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def run_copy(run_folder: Path, to: Path, **record: Any) -> Path:
    shutil.copytree(run_folder, to)
    document = json.loads((to / "run.json").read_text())
    (to / "run.json").write_text(json.dumps({**document, **record}))
    return to


@pytest.mark.parametrize("status", ["running", "interrupted", "failed", None])
def test_an_unfinished_run_is_refused_or_called_so(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: str | None
) -> None:
    folder = run_copy(run_folder, tmp_path / "run", status=status)
    assert run(["export", str(folder), str(tmp_path / "bundle")]) == 5
    assert "did not finish" in capsys.readouterr().err and not (tmp_path / "bundle").exists()
    assert run(["export", str(folder), str(tmp_path / "bundle"), "--unfinished"]) == 0
    metadata = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    assert metadata["run"]["status"] == status
    assert "training did not finish" in (tmp_path / "bundle" / "docs" / "README.md").read_text()


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_what_was_changed_since_the_training_is_refused(run_folder: Path, tmp_path: Path, name: str) -> None:
    folder = run_copy(run_folder, tmp_path / "run")
    with (folder / name).open("a") as stream:
        stream.write("\n")
    with pytest.raises(RefusedError, match="not the one that it was trained with"):
        export(folder, tmp_path / "bundle", unfinished=True)
    assert not (tmp_path / "bundle").exists()


def test_an_older_bundle_outlives_what_goes_wrong_at_the_last_step(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = export(run_folder, tmp_path / "bundle")
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if ".partial" in self.parts and self.name == "bundle":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(UsageError, match="cannot write"):
        export(run_folder, tmp_path / "bundle", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert open_bundle(tmp_path / "bundle").sha256 == older.sha256


def words_in(path: Path) -> bytes:
    """A file without its numbers, in which a short name may stand by chance."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        head = content[:10]
        assert head[3] == 0 and head[4:8] == bytes(4), "the archive keeps a file name or a time"
        return gzip.decompress(content)[:352]
    if path.suffix == ".png":
        return b"".join(kind + data for kind, data in chunks(content) if kind != b"IDAT")
    if path.suffix == ".pt":
        with zipfile.ZipFile(path) as archive:
            return b"".join(archive.read(name) for name in archive.namelist() if "/data/" not in name)
    return content


def chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 8
    while place < len(png):
        length, kind = struct.unpack(">I4s", png[place : place + 8])
        yield kind, png[place + 8 : place + 8 + length]
        place += 12 + length


def test_no_exported_file_names_this_machine_or_its_user(
    bundle: Bundle, run_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    names = {str(run_folder), str(tmp_path_factory.getbasetemp()), str(Path.home()), "/data/of/mine"}
    names |= {
        *({getpass.getuser()} - {"root"}),
        platform.node(),
        socket.gethostname(),
        str(Path(segpipe.__file__).parents[2]),
    }
    for path in bundle.root.rglob("*"):
        content = words_in(path) if path.is_file() else b""
        for name in names:
            pattern = rb"(?<![\w.])" + re.escape(name.encode()) + rb"(?![\w.])"
            assert not re.search(pattern, content), f"{name} in {path.name}"


def test_it_opens_where_nothing_can_be_written(bundle: Bundle, tmp_path: Path) -> None:
    place = Path(shutil.copytree(bundle.root, tmp_path / "bundle"))
    before = {path: path.stat().st_mtime_ns for path in [place, *place.rglob("*")]}
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert open_bundle(place).sha256 == bundle.sha256
    assert {path: path.stat().st_mtime_ns for path in [place, *place.rglob("*")]} == before
    for path in before:
        path.chmod(0o755)


def test_a_rule_for_an_unknown_label(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.json").write_text(json.dumps({"schema_version": 1, "rules": {"3": {"keep_largest": True}}}))
    with pytest.raises(UsageError, match="unknown label"):
        export(run_folder, tmp_path / "bundle", postprocessing=tmp_path / "rules.json")


def test_a_full_disk_leaves_nothing(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert run(["export", str(run_folder), str(tmp_path / "bundle")]) == 2
    assert list(tmp_path.iterdir()) == []


def test_licence_is_a_name_or_a_file(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("do as you like\n")
    assert run(["export", str(run_folder), str(tmp_path / "a"), "--licence", str(tmp_path / "own.txt")]) == 0
    assert (tmp_path / "a" / "LICENSE").read_text() == "do as you like\n"
    assert str(tmp_path) not in (tmp_path / "a" / "configs" / "metadata.json").read_text()
    assert run(["export", str(run_folder), str(tmp_path / "b"), "--licence", "CC-BY-4.0"]) == 0
    assert "CC-BY-4.0" in (tmp_path / "b" / "LICENSE").read_text()
    assert run(["export", str(run_folder), str(tmp_path / "c")]) == 0
    assert "Apache License" in (tmp_path / "c" / "LICENSE").read_text()


@pytest.mark.parametrize("option", [["--name", "../up"], ["--version", "new"]])
def test_name_and_version_are_checked(run_folder: Path, tmp_path: Path, option: list[str]) -> None:
    assert run(["export", str(run_folder), str(tmp_path / "bundle"), *option]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_train_config_trains_from_the_bundle(
    bundle: Bundle, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import monai.bundle
    import numpy as np
    from tiny_run import affines

    from segpipe.bundle.open import open_bundle
    from segpipe.data.phantom import write_nifti

    (tmp_path / "images").symlink_to(images)
    (tmp_path / "labels").mkdir()
    for name, affine in affines().items():
        truth = np.random.default_rng(0).integers(0, 3, (16, 16, 16)).astype(np.uint8)
        write_nifti(tmp_path / "labels" / f"{name}.nii.gz", truth, affine)
    monkeypatch.chdir(tmp_path)
    train = str(bundle.root / "configs" / "train.json")
    monai.bundle.run(
        config_file=train, bundle_root=str(bundle.root), dataset_dir=str(tmp_path), max_epochs=1, val_interval=1
    )
    assert (tmp_path / "run" / "best.pt").is_file()
    assert open_bundle(bundle.root).intact


def test_the_schema_in_the_docs_is_the_packages() -> None:
    documented = Path(__file__).parents[2] / "docs" / "schemas" / SCHEMA.name
    assert documented.read_text() == SCHEMA.read_text()


def test_axes_that_the_training_mirrored_are_recorded_where_they_are_known(make_run: Any, tmp_path: Path) -> None:
    for name, record in (("unknown", {}), ("none", {"mirror_axes": []}), ("two", {"mirror_axes": ["x", "z"]})):
        folder = make_run()
        write_json(folder / "run.json", {**json.loads((folder / "run.json").read_text()), **record})
        made = segpipe.export(folder, tmp_path / name)
        assert made.metadata.get("training") == (record or None)
        jsonschema.validate(made.metadata, json.loads(SCHEMA.read_text()))
    folder = make_run()
    write_json(folder / "run.json", {**json.loads((folder / "run.json").read_text()), "mirror_axes": None})
    assert "training" not in segpipe.export(folder, tmp_path / "untold").metadata


def test_limits_stand_in_metadata_and_card(make_run: Any, tmp_path: Path) -> None:
    words = ["export", str(make_run()), str(tmp_path / "limited")]
    assert run([*words, "--limit", "Crops alone.", "--limit", "Adults alone."]) == 0
    made = open_bundle(tmp_path / "limited")
    assert made.metadata["limits"] == ["Crops alone.", "Adults alone."]
    assert "## Limits\n\n- Crops alone.\n- Adults alone.\n" in (made.root / "docs/README.md").read_text()


def test_labels_have_their_codes_in_dicom(bundle: Bundle, run_folder: Path, tmp_path: Path) -> None:
    known = bundle.metadata["codes"]
    assert set(known) <= set(bundle.labels.values())
    name = next(name for value, name in bundle.labels.items() if value)
    code = {"value": "1", "scheme": "99OWN", "meaning": "Gizmo"}
    given = {name: {"type": code, "colour_rgb": [1, 2, 3]}}
    (tmp_path / "codes.json").write_text(json.dumps(given))
    words = ["export", str(run_folder), str(tmp_path / "own"), "--codes", str(tmp_path / "codes.json")]
    assert run(words) == 0
    own = open_bundle(tmp_path / "own").metadata["codes"][name]
    assert (own["type"], own["colour_rgb"]) == (code, [1, 2, 3])


@pytest.mark.parametrize(("codes", "code"), [({"nothing": {}}, 2), ({"NAME": {"type": 1}}, 3), ({"NAME": 7}, 3)])
def test_codes_that_cannot_be_used(run_folder: Path, tmp_path: Path, codes: dict[str, Any], code: int) -> None:
    labels = json.loads((run_folder / "manifest.json").read_text())["labels"]
    (tmp_path / "codes.json").write_text(json.dumps(codes).replace("NAME", labels["1"]))
    words = ["export", str(run_folder), str(tmp_path / "own"), "--codes", str(tmp_path / "codes.json")]
    assert run(words) == code
    assert not (tmp_path / "own").exists()
