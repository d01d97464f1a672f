"""MONAI's own commands on an exported bundle, from a directory of their own, and every line that they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_run import MakeRun, affines, write_volumes

from segpipe.bundle import Bundle, open_bundle
from segpipe.bundle.exporting.write import export
from segpipe.common.files import sha256_of, write_json
from segpipe.data.phantom import write_nifti

ADVISORY = r"parsing config_file .*GHSA-873f-pvrv-4x83"
DECODER = r"NvImgCodecPydicomReader: nvImageCodec decoder plugin did not register successfully"
TORCHVISION = r"torchvision is not installed\. Skipping torchvision::"
SMALL_OBJECTS = r"Parameter `min_size` is deprecated"
TREESPEC = r"`isinstance\(treespec, LeafSpec\)` is deprecated"
REPOSITORY = Path(__file__).parents[2]
SCHEMA = REPOSITORY / "pipeline" / "segpipe" / "schemas" / "bundle_metadata.schema.json"
Run = Callable[..., None]


@pytest.fixture(scope="module")
def shared(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with every kind of config, and rules for the label map."""
    rules = tmp_path_factory.mktemp("rules") / "rules.json"
    write_json(rules, {"schema_version": 1, "rules": {"1": {"keep_largest": True, "min_volume_ml": 0.001}}})
    return export(make_run(), tmp_path_factory.mktemp("shared") / "tiny_mri", postprocessing=rules)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and labels of the bundle's manifest; one label is absent in one case."""
    folder = tmp_path_factory.mktemp("data")
    write_volumes(folder / "images")
    (folder / "labels").mkdir()
    for name, affine in affines().items():
        labels = np.zeros((16, 16, 16), np.uint8)
        labels[3:9, 4:12, 5:11] = 1
        labels[9:13, 4:12, 5:11] = 0 if name == "tilted" else 2
        write_nifti(folder / "labels" / f"{name}.nii.gz", labels, affine)
    return folder


@pytest.fixture
def run(shared: Bundle, tmp_path: Path) -> Run:
    """Run a command of `monai.bundle` in an empty directory; what it prints must be among ``allowed``."""

    def command(*arguments: str | Path, allowed: tuple[str, ...] = (), writes: tuple[str, ...] = ()) -> None:
        before = open_bundle(shared.root).sha256
        quiet = ("PYTHONPATH", "PYTHONWARNINGS", "SEGPIPE_DEBUG")
        done = subprocess.run(
            [sys.executable, "-m", "monai.bundle", *map(str, arguments)],
            cwd=tmp_path,
            check=False,
            env={name: value for name, value in os.environ.items() if name not in quiet},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        said = warnings(done.stdout, done.stderr)
        assert [text for text in said if not any(re.search(pattern, text) for pattern in allowed)] == []
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(writes)
        assert open_bundle(shared.root).sha256 == before

    return command


def warnings(stdout: str, stderr: str) -> list[str]:
    """Whatever is more than information: standard error less code lines and progress, and log lines of rank."""
    progress = re.compile(r"epoch \d+/\d+ ")
    rank = re.compile(r"\b(WARN(ING)?|ERROR|CRITICAL)\b|Warning\b")
    beside = [line for line in stderr.splitlines() if line.strip() and not line.startswith("  ")]
    return [line for line in beside if not progress.match(line)] + [
        line for line in stdout.splitlines() if rank.search(line)
    ]


def config(bundle: Bundle, name: str) -> str:
    return str(bundle.root / "configs" / name)


@pytest.mark.slow
def test_every_config_of_a_bundle_is_run_here(shared: Bundle) -> None:
    found = {path.name for path in (shared.root / "configs").iterdir()}
    run = {"inference.json", "inference_fast.json", "evaluate.json", "train.json"}
    assert found == run | {"metadata.json", "manifest.json", "logging.conf"}


def test_what_is_still_said_is_documented() -> None:
    text = " ".join((REPOSITORY / "docs" / "reference" / "commands" / "bundle.md").read_text().split())
    for words in ("GHSA-873f-pvrv-4x83", "nvImageCodec", "torchvision is not installed", "LeafSpec", "min_size"):
        assert words in text


@pytest.mark.slow
@pytest.mark.parametrize("fast", [False, True])
def test_inference(shared: Bundle, data: Path, run: Run, tmp_path: Path, fast: bool) -> None:
    names = ["inference.json", "inference_fast.json"] if fast else ["inference.json"]
    run(
        "run",
        "--config_file",
        str([config(shared, name) for name in names]),
        "--bundle_root",
        shared.root,
        "--dataset_dir",
        data / "images",
        "--output_dir",
        "OUT",
        allowed=(ADVISORY, SMALL_OBJECTS, *(() if fast else (DECODER,))),
        writes=("OUT",),
    )
    assert len(list((tmp_path / "OUT").iterdir())) == len(affines())


@pytest.mark.slow
def test_evaluate(shared: Bundle, data: Path, run: Run, tmp_path: Path) -> None:
    run(
        "run",
        "--config_file",
        config(shared, "evaluate.json"),
        "--bundle_root",
        shared.root,
        "--dataset_dir",
        data,
        "--output_dir",
        "OUT",
        allowed=(ADVISORY, DECODER, SMALL_OBJECTS),
        writes=("OUT",),
    )
    assert (tmp_path / "OUT" / "val_mean_dice_raw.csv").is_file()


@pytest.mark.slow
def test_train(shared: Bundle, data: Path, run: Run, tmp_path: Path) -> None:
    run(
        "run",
        "--config_file",
        config(shared, "train.json"),
        "--bundle_root",
        shared.root,
        "--dataset_dir",
        data,
        "--max_epochs",
        "2",
        "--val_interval",
        "1",
        "--batch_size",
        "2",
        allowed=(ADVISORY, DECODER),
        writes=("run",),
    )
    assert (tmp_path / "run" / "best.pt").is_file()


@pytest.mark.slow
def test_verify_metadata(shared: Bundle, run: Run) -> None:
    run(
        "verify_metadata",
        "--meta_file",
        config(shared, "metadata.json"),
        "--filepath",
        SCHEMA,
        "--hash_val",
        sha256_of(SCHEMA),
        "--hash_type",
        "sha256",
    )


@pytest.mark.slow
def test_verify_net_in_out(shared: Bundle, run: Run) -> None:
    run(
        "verify_net_in_out",
        "network_def",
        "--device",
        "cpu",
        "--meta_file",
        config(shared, "metadata.json"),
        "--config_file",
        config(shared, "inference.json"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "ts"])
def test_exports_to_other_formats(shared: Bundle, run: Run, kind: str) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxscript", reason="onnx is not installed")
    run(
        "onnx_export" if kind == "onnx" else "ckpt_export",
        "network_def",
        "--filepath",
        f"model.{kind}",
        "--ckpt_file",
        shared.weights,
        "--meta_file",
        config(shared, "metadata.json"),
        "--config_file",
        config(shared, "inference.json"),
        allowed=(TORCHVISION, TREESPEC) if kind == "onnx" else (),
        writes=(f"model.{kind}",),
    )
