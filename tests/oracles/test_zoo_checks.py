"""The checks that MONAI's public model zoo makes of every bundle that is handed in, on all bundles that we ship.

They follow the order of the zoo's `verify_bundle.py`, written anew; a bundle lies where the zoo would put it, in
``models/<name>`` beside a ``model_info.json`` of what was published before.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from segpipe.cli.app import run
from tiny_data import train_arguments

REPOSITORY = Path(__file__).parents[2]
SCHEMA = REPOSITORY / "pipeline" / "segpipe" / "schemas" / "bundle_metadata.schema.json"
SHIPPED = sorted(path.parent.parent for path in (REPOSITORY / "bundles").glob("*/configs/metadata.json"))
FRESH = "freshly_exported"
LARGEST = 25 * 2**20  # a file that is larger has to be downloaded from somewhere else
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fresh")
    assert run(train_arguments(tiny_manifest, folder / "run", "--epochs", "1")) == 0
    assert run(["export", str(folder / "run"), str(folder / FRESH)]) == 0
    return folder / FRESH


@pytest.fixture(scope="module", params=[*SHIPPED, FRESH], ids=lambda item: getattr(item, "name", item))
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundle in the zoo."""
    source: Path = request.getfixturevalue("exported") if request.param == FRESH else request.param
    zoo = tmp_path_factory.mktemp("zoo")
    (zoo / "model_info.json").write_text("{}")
    shutil.copytree(source, zoo / source.name)
    return zoo / source.name


@pytest.fixture(scope="module")
def metadata(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "configs" / "metadata.json").read_text())
    return found


def where(bundle: Path) -> dict[str, str]:
    configs = bundle / "configs"
    return {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "inference.json")}


def test_nothing_has_to_be_downloaded(bundle: Path) -> None:
    assert not list(bundle.glob("large_files.*"))
    assert max(path.stat().st_size for path in bundle.rglob("*") if path.is_file()) <= LARGEST


def weights(bundle: Path, metadata: dict[str, Any]) -> list[Path]:
    """The zoo prefers one ``models/model.pt``; of an ensemble, each member's file is checked as that one would be."""
    return [bundle / member["file"] for member in metadata.get("members", [{"file": "models/model.pt"}])]


def test_files_that_the_zoo_wants_are_there(bundle: Path, metadata: dict[str, Any]) -> None:
    files = [bundle / name for name in ("configs/metadata.json", "LICENSE", "configs/inference.json")]
    assert all(path.stat().st_size > 0 for path in [*files, *weights(bundle, metadata)])


def test_the_version_is_new_and_in_the_changelog(bundle: Path, metadata: dict[str, Any]) -> None:
    assert metadata["version"] in metadata["changelog"]
    assert Version(metadata["version"]) == max(map(Version, metadata["changelog"]))
    assert f"{bundle.name}_v{metadata['version']}" not in json.loads((bundle.parent / "model_info.json").read_text())


def test_metadata_follows_the_schema(bundle: Path) -> None:
    from monai.bundle import verify_metadata

    (bundle / "eval").mkdir()
    schema = shutil.copy(SCHEMA, bundle / "eval" / "schema.json")
    verify_metadata(meta_file=where(bundle)["meta_file"], filepath=schema)


def test_what_has_to_be_installed_is_named_as_the_zoo_installs_it(metadata: dict[str, Any]) -> None:
    versions = {"monai": metadata["monai_version"], "torch": metadata["pytorch_version"]}
    versions |= {"numpy": metadata["numpy_version"], **metadata["required_packages_version"]}
    for name, version in versions.items():
        assert Requirement(f"{name}=={version}").specifier.contains(version)


def test_the_config_has_what_monai_expects_of_inference(bundle: Path, metadata: dict[str, Any]) -> None:
    from monai.bundle import ConfigWorkflow

    assert "supported_apps" not in metadata  # an app would want properties of its own
    workflow = ConfigWorkflow(**where(bundle), workflow_type="inference", logging_file=False)
    workflow.parser["bundle_root"], workflow.parser["dataset_dir"] = str(bundle), str(bundle / "configs")
    workflow.initialize()
    assert not workflow.check_properties()


def test_the_network_takes_and_gives_what_the_metadata_says(bundle: Path) -> None:
    from monai.bundle import verify_net_in_out

    verify_net_in_out(net_id="network_def", device="cpu", bundle_root=str(bundle), **where(bundle))


def test_the_weights_become_torchscript(bundle: Path, metadata: dict[str, Any]) -> None:
    """By scripting, as the zoo does it; MONAI's DynUNet with heads below the last is only traced."""
    import torch
    from monai.bundle import ckpt_export

    network = json.loads((bundle / "configs/inference.json").read_text())["network_def"]
    shape = [1, network["in_channels"], *metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]]
    way: dict[str, Any] = {"use_trace": True, "input_shape": shape} if network.get("deep_supervision") else {}
    for file in weights(bundle, metadata):
        made = file.with_name("verify_model.ts")
        ckpt_export(
            net_id="network_def",
            filepath=str(made),
            ckpt_file=str(file),
            bundle_root=str(bundle),
            **where(bundle),
            **way,
        )
        torch.jit.load(str(made))
    for made in (bundle / "models").glob("*.ts"):
        torch.jit.load(str(made))
