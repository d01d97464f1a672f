"""The one door: what is read, what is refused, and what is said of bundles that others made."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from segpipe.bundle import Bundle, open_bundle
from segpipe.bundle.supported_subset import is_plain, resolve
from segpipe.errors import DataError, RefusedError, UsageError
from segpipe.inference.transforms import Spacing, SpatialPad


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.root, tmp_path / "copy"))


def test_everything_is_read_as_data(bundle: Bundle) -> None:
    assert bundle.name == "tiny_mri" and bundle.version == "0.1.0"
    assert bundle.labels == {0: "background", 1: "left | part", 2: "right part"}
    assert bundle.channels == ["MRI"]
    pad = bundle.preprocessing and bundle.preprocessing.find(SpatialPad)
    assert pad and pad.spatial_size == (16, 16, 16)
    assert bundle.activation == "softmax" and bundle.cleanup == ()
    assert (bundle.roi_size, bundle.overlap, bundle.window_mode) == ((16, 16, 16), 0.5, "gaussian")
    assert bundle.network_def is not None and bundle.network_def["out_channels"] == 3
    assert bundle.weights.is_file() and len(bundle.sha256) == 64


def test_hash_names_the_content_not_the_place(bundle: Bundle, copy: Path) -> None:
    assert open_bundle(copy).sha256 == bundle.sha256
    (copy / "SHA256SUMS").unlink()
    opened = open_bundle(copy)
    assert opened.intact is None and opened.sha256 == bundle.sha256


def test_a_changed_file_is_refused(copy: Path) -> None:
    with (copy / "models" / "model.pt").open("r+b") as stream:
        stream.seek(100)
        stream.write(b"\x00\x01")
    with pytest.raises(RefusedError, match=r"models/model\.pt was changed") as caught:
        open_bundle(copy)
    assert caught.value.exit_code == 5
    assert len(caught.value.found or "") == len(caught.value.expected or "") == 64


def test_a_missing_and_an_added_file_are_refused(copy: Path) -> None:
    (copy / "sitecustomize.py").write_text("")
    with pytest.raises(RefusedError, match=r"sitecustomize\.py was added"):
        open_bundle(copy)
    (copy / "sitecustomize.py").unlink()
    (copy / "LICENSE").unlink()
    with pytest.raises(RefusedError, match="LICENSE was missing"):
        open_bundle(copy)


def test_a_link_and_odd_sums_are_refused(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (copy / "scripts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedError, match="link"):
        open_bundle(copy)
    (copy / "scripts").unlink()
    with (copy / "SHA256SUMS").open("a") as stream:
        stream.write("not a line\n")
    with pytest.raises(RefusedError, match="cannot be read"):
        open_bundle(copy)


@pytest.mark.parametrize(
    ("remove", "kind", "words"),
    [
        ("configs/metadata.json", UsageError, "not a MONAI bundle"),
        ("configs/inference.json", UsageError, "no inference config"),
        ("models/model.pt", DataError, "no weights"),
    ],
)
def test_what_a_bundle_must_have(copy: Path, remove: str, kind: type[Exception], words: str) -> None:
    (copy / "SHA256SUMS").unlink()
    (copy / remove).unlink()
    with pytest.raises(kind, match=words):
        open_bundle(copy)
    with pytest.raises(UsageError, match="not a MONAI bundle"):
        open_bundle(copy / "nowhere")


FOREIGN: dict[str, Any] = {
    "imports": ["$import os"],
    "bundle_root": "/workspace/bundle",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "spacing": [1.5, 1.5, 2.0],
    "network_def": {
        "_target_": "UNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 2,
        "channels": [4, 8],
        "strides": [2],
    },
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": "@spacing", "mode": "bilinear"},
            {"_target_": "EnsureTyped", "keys": "image"},
        ],
    },
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [96, 96, 96], "sw_batch_size": 4, "overlap": 0.5},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"},
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "SaveImaged", "keys": "pred"},
        ],
    },
    "evil": "$os.system('touch /tmp/evaluated')",
}


def foreign(folder: Path, **change: Any) -> Path:
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "models" / "model.pt").write_bytes(b"never read here")
    (folder / "configs" / "metadata.json").write_text(json.dumps({"version": "0.5.4"}))
    (folder / "configs" / "inference.yaml").write_text(yaml.safe_dump({**FOREIGN, **change}))
    return folder


def test_a_foreign_bundle_opens_and_says_why_it_runs_stock(tmp_path: Path) -> None:
    opened = open_bundle(foreign(tmp_path / "zoo"))
    assert opened.intact is None and opened.name == "zoo" and opened.labels == {}
    spacing = opened.preprocessing and opened.preprocessing.find(Spacing)
    assert spacing and spacing.pixdim == (1.5, 1.5, 2.0)
    assert opened.roi_size == (96, 96, 96)
    assert opened.unsupported == ("postprocessing: not activation, Invertd, discretisation, saving",)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {
                "preprocessing": {
                    "_target_": "Compose",
                    "transforms": [{"_target_": "ScaleIntensityd", "keys": "image"}],
                }
            },
            "ScaleIntensityd",
        ),
        ({"preprocessing": "$scripts.make()"}, "preprocessing"),
        ({"preprocessing": {**FOREIGN["preprocessing"], "lazy": True}}, "preprocessing"),
        (  # what is run counts, whatever else the config names
            {
                "deterministic_transforms": FOREIGN["preprocessing"]["transforms"],
                "preprocessing": ["@deterministic_transforms", {"_target_": "ScaleIntensityd", "keys": "image"}],
            },
            "preprocessing",
        ),
        ({"network_def": "$@other.network"}, "network_def"),
        ({"inferer": {"_target_": "SimpleInferer"}}, "inferer"),
        ({"inferer": {"_target_": "SlidingWindowInferer", "roi_size": [8, 8, 8], "cval": -1}}, "cval"),
        ({"inferer": {"_target_": "SlidingWindowInferer", "roi_size": [8, 8]}}, "roi_size"),
        ({"inferer": {"_target_": "SlidingWindowInferer", "roi_size": 8, "overlap": "much"}}, "overlap"),
        ({"inferer": None, "postprocessing": None}, "postprocessing"),
    ],
)
def test_each_deviation_is_named(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    assert any(reason in words for words in open_bundle(foreign(tmp_path / "zoo", **change)).unsupported)


@pytest.mark.parametrize(
    "content", ["[1, 2]", "{", '{"network_data_format": {"outputs": {"pred": {"channel_def": {"a": "b"}}}}}']
)
def test_unreadable_metadata(tmp_path: Path, content: str) -> None:
    folder = foreign(tmp_path / "zoo")
    (folder / "configs" / "metadata.json").write_text(content)
    with pytest.raises(DataError):
        open_bundle(folder)


def test_labels_and_channels_of_metadata_that_names_its_tensors_otherwise(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "zoo")
    formats = {
        "inputs": {"images": {"num_channels": 4}},
        "outputs": {"labels": {"channel_def": {"1": "tumour", "0": "background"}}},
    }
    (folder / "configs" / "metadata.json").write_text(json.dumps({"network_data_format": formats}))
    opened = open_bundle(folder)
    assert opened.labels == {0: "background", 1: "tumour"}
    assert opened.channels == ["channel 0", "channel 1", "channel 2", "channel 3"]


@pytest.mark.parametrize(
    "tensor",
    [{"channel_def": "MRI"}, {"channel_def": 3}, {"channel_def": True}, {"num_channels": 10**12}, {"num_channels": -1}],
)
def test_channels_that_are_no_list_or_beyond_any_image_are_data_errors(tmp_path: Path, tensor: dict[str, Any]) -> None:
    folder = foreign(tmp_path / "zoo")
    formats = {"inputs": {"image": tensor}, "outputs": {"pred": {"channel_def": {"0": "background", "1": "tumour"}}}}
    (folder / "configs" / "metadata.json").write_text(json.dumps({"network_data_format": formats}))
    with pytest.raises(DataError, match="network_data_format") as caught:
        open_bundle(folder)
    assert "channel" in str(caught.value.found)


def test_a_config_is_read_as_plain_values_and_not_blown_up(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "zoo")
    config = folder / "configs" / "inference.yaml"
    written = config.read_text()
    config.write_text(written + "made: 2024-05-01\nvalues: {1: a, 2: b}\n")
    opened = open_bundle(folder)
    assert opened.inference["made"] == "2024-05-01" and opened.inference["values"] == {"1": "a", "2": "b"}
    laughs = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    config.write_text(written + "a0: &a0 [lol]\n" + laughs)
    with pytest.raises(DataError, match="cannot be read"):
        open_bundle(folder)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet="abc 1", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(value=plain, extra=plain)
def test_references_are_followed_as_data(value: Any, extra: Any) -> None:
    config = {"x": value, "deep": {"list": [extra, value]}, "circle": "@circle", "two": "@x"}
    assert resolve(value, config) == value and is_plain(value)
    assert resolve({"a": ["@x", "@two"]}, config) == {"a": [value, value]}
    assert resolve("@deep#list#1", config) == resolve("@deep::list::1", config) == value
    for open_end in ("@circle", "@nowhere", "@deep#list#7", "$@x + 1", "%other.json::x"):
        assert resolve(open_end, config) == open_end and not is_plain(open_end)


def test_references_that_double_at_each_step_come_to_an_end() -> None:
    config = {f"a{n}": [f"@a{n + 1}", f"@a{n + 1}"] for n in range(60)}
    with pytest.raises(DataError, match="grow"):
        resolve("@a0", config)


@pytest.mark.slow
def test_opening_imports_no_torch(bundle: Bundle) -> None:
    code = (
        "import sys; from segpipe.bundle import open_bundle; open_bundle(sys.argv[1]); "
        "sys.exit(bool({'torch', 'monai', 'highdicom'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(bundle.root)], check=False).returncode == 0


def test_arguments_of_a_wrong_type_are_named(bundle: Bundle) -> None:
    wrong: Any
    for wrong in (None, 7, ""):
        with pytest.raises(UsageError, match="not a path") as caught:
            open_bundle(wrong)
        assert caught.value.found == repr(wrong)
    with pytest.raises(UsageError, match="not a path"):
        open_bundle(bundle.root, key=7)  # type: ignore[arg-type]
    for wrong in (None, [1], 7):
        with pytest.raises(UsageError, match="not names to allow"):
            open_bundle(bundle.root, allow=wrong)
    assert open_bundle(bundle.root, allow="glob").policy.allow == ("glob",)


def test_a_later_current_folder_changes_nothing(bundle: Bundle, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parent)
    opened = open_bundle(copy.name)
    assert (opened.root, opened.weights) == (copy, copy / "models" / "model.pt") and opened.config_file.is_absolute()
    assert repr(opened) == f"Bundle('tiny_mri', version 0.1.0, sha256 {bundle.sha256[:12]}, root '{copy}')"
