"""The gate: what it lets through, on which terms, and that nothing of what it refuses is executed."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_bundle import change_json, copy, small_bundle

from segpipe.bundle.open import bundle_folder, open_bundle
from segpipe.bundle.vet.documents import write_sums
from segpipe.bundle.vet.gate import TrustPolicy, bundle_around, require_vetted, require_vetted_sources, vet_opened
from segpipe.cli.app import run
from segpipe.errors import OK, REFUSED, USAGE, RefusedError, UsageError
from segpipe.inference import ModelOptions, Recipe
from segpipe.prediction.client import CannotGoOnError, Worker
from segpipe.prediction.protocol import Loaded

MARKER = "executed"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("gate") / "good")


def armed(root: Path, good: Path, **ids: Any) -> Path:
    """A copy that would write a file next to itself where it were run, with SHA256SUMS that say so."""
    copy(good, root)
    payload = f"$open({str(root.parent / MARKER)!r}, 'w').close()"
    change_json(root / "configs/inference.json", lambda config: config.update(initialize=[payload], **ids))
    write_sums(root)
    return root


class NoModel(Worker):
    """A worker that comes as far as the gate, within this process."""

    def start(self) -> Loaded:
        try:
            return Loaded(vetting=vet_opened(self.load.recipe.bundles, self.load.policy))
        except RefusedError as error:
            raise CannotGoOnError(error) from error

    def segment(self, *given: Any, **more: Any) -> Any:
        raise AssertionError("let through")


def test_what_passes_says_so(good: Path) -> None:
    assert require_vetted(good) == {"passed": True, "findings": 0, "allowed": [], "intact": True}


def test_a_refusal_names_file_place_and_what_admits_it(tmp_path: Path, good: Path) -> None:
    root = armed(tmp_path / "bad", good)
    with pytest.raises(RefusedError) as refused:
        require_vetted(root)
    assert {each["name"] for each in refused.value.findings} == {"io.open", ".close"}
    assert {(each["file"], each["place"]) for each in refused.value.findings} == {
        ("configs/inference.json", "initialize::0")
    }
    assert "--allow 'io.open'" in str(refused.value)
    assert "--run-unvetted-code" in (refused.value.hint or "")
    assert "findings" not in refused.value.as_dict()  # reports hold no text of a bundle
    with pytest.raises(RefusedError, match="static checks"):
        require_vetted(root, TrustPolicy(("io.open", "open")))  # .close is not a listed method
    assert require_vetted(root, TrustPolicy(("io.open", ".close")))["allowed"] == [".close", "io.open"]
    assert require_vetted(root, TrustPolicy(run_unvetted_code=True))["passed"] is False
    assert not (tmp_path / MARKER).exists()


def changed(root: Path) -> None:
    with (root / "models/model.pt").open("r+b") as stream:
        stream.seek(-30, 2)
        byte = stream.read(1)
        stream.seek(-30, 2)
        stream.write(bytes([byte[0] ^ 1]))


def added(root: Path) -> None:
    (root / "docs/more.md").write_text("more")


def taken(root: Path) -> None:
    (root / "LICENSE").unlink()


@pytest.mark.parametrize("deed", [changed, added, taken])
def test_a_changed_bundle_is_refused_unless_the_flag_says_so(
    deed: Callable[[Path], None], tmp_path: Path, good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy(good, tmp_path / "b")
    deed(root)
    assert run(["predict", str(root), str(tmp_path), str(tmp_path / "out"), "--json"]) == REFUSED
    assert "not as it was exported" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert not (tmp_path / "out").exists()
    opened = open_bundle(root, run_unvetted_code=True)
    assert opened.intact is False
    said = require_vetted(root, TrustPolicy(run_unvetted_code=True))
    assert (said["passed"], said["intact"]) == (False, False)


def recipe_of(root: Path, **changes: Any) -> Recipe:
    return replace(open_bundle(root).recipe(ModelOptions()), **changes)


def test_what_the_worker_is_handed_is_vetted_and_not_only_what_lies_there(good: Path) -> None:
    recipe = recipe_of(good)
    assert vet_opened(recipe.bundles, TrustPolicy())["passed"]
    for changes in (
        {"inference": {**recipe.inference, "x": {"_target_": "os.system", "command": "id"}}},
        {"metadata": {**recipe.metadata, "description": "$import this"}},
    ):
        with pytest.raises(RefusedError) as refused:
            vet_opened(replace(recipe, **changes).bundles, TrustPolicy())
        assert len(refused.value.findings) == 1
    for sha256 in ("0" * 64, ""):
        with pytest.raises(RefusedError, match="changed while it was opened"):
            vet_opened(replace(recipe, sha256=sha256).bundles, TrustPolicy())


def test_each_member_of_an_ensemble_is_vetted(tmp_path: Path, good: Path) -> None:
    bad = open_bundle(armed(tmp_path / "bad", good))
    recipe = open_bundle(good).recipe(ModelOptions(), [bad])
    with pytest.raises(RefusedError):
        vet_opened(recipe.bundles, TrustPolicy())
    said = vet_opened(recipe.bundles, TrustPolicy(("io.open", ".close")))
    assert said["passed"] and said["allowed"] == [".close", "io.open"] and said["intact"] is True
    assert not (tmp_path / MARKER).exists()


def test_predict_refuses_before_anything_is_written_or_run(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny_bundle import write_scan

    monkeypatch.setattr("segpipe.prediction.batch.Worker", NoModel)
    root, scan = armed(tmp_path / "bad", good), write_scan(tmp_path / "in/a.nii.gz")
    command = ["predict", str(root), str(scan), str(tmp_path / "out")]
    assert run(command) == REFUSED
    words = capsys.readouterr().err
    assert "configs/inference.json initialize::0" in words and "--allow 'io.open'" in words
    assert not (tmp_path / "out/a").exists() and not (tmp_path / "out/summary.json").exists()
    with pytest.raises(AssertionError, match="let through"):
        _past_the_last_wall(command, "--allow", "io.open", "--allow", ".close")
    with pytest.raises(AssertionError, match="let through"):
        _past_the_last_wall(command, "--run-unvetted-code")
    assert not (tmp_path / MARKER).exists()


def _past_the_last_wall(command: list[str], *more: str) -> None:
    from segpipe.cli.app import app

    app(args=[*command, *more], standalone_mode=False)


def test_a_zip_file_is_a_bundle_for_the_time_of_the_command(tmp_path: Path, good: Path) -> None:
    packed = Path(shutil.make_archive(str(tmp_path / "b"), "zip", good))
    with bundle_folder(packed) as root:
        assert require_vetted(root)["passed"] and root != good
    assert not root.exists()
    with bundle_folder(good) as root:
        assert root == good
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("../outside", "x")
    for flag in ([], ["--run-unvetted-code"]):
        assert run(["predict", str(packed), str(tmp_path), str(tmp_path / "out"), *flag]) == REFUSED
    with pytest.raises(RefusedError) as refused, bundle_folder(packed):
        pass
    assert refused.value.findings and not (tmp_path / "outside").exists()
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(UsageError), bundle_folder(tmp_path / "text.zip"):
        pass
    assert run(["predict", str(tmp_path / "nowhere"), str(tmp_path), str(tmp_path / "out")]) == USAGE


def test_files_that_lie_in_a_bundle_are_used_when_it_passes(tmp_path: Path, good: Path) -> None:
    root = armed(tmp_path / "bad", good)
    inside = root / "configs/manifest.json"
    assert bundle_around(root / "configs/inference.json") == root.resolve()
    assert bundle_around(tmp_path) is None and bundle_around(Path("unet")) is None
    inside.write_text("{}")
    require_vetted_sources([None, "unet", tmp_path, good / "configs/metadata.json"], TrustPolicy())
    with pytest.raises(RefusedError):
        require_vetted_sources([None, inside], TrustPolicy())
    require_vetted_sources([inside], TrustPolicy(run_unvetted_code=True))


@pytest.mark.parametrize("verb", ["evaluate", "train"])
def test_evaluate_and_train_refuse_files_of_a_bundle_that_does_not_pass(
    verb: str, tmp_path: Path, good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = armed(tmp_path / "bad", good)
    inside, out = root / "configs/manifest.json", str(tmp_path / "out")
    inside.write_text("{}")
    words = [str(tmp_path), "--out", out] if verb == "evaluate" else ["--task", "x.yaml", "--out", out]
    assert run([verb, str(inside), *words, "--json"]) == REFUSED
    error = json.loads(capsys.readouterr().out)["error"]
    assert {each["file"] for each in error["findings"]} == {"configs/inference.json", "configs/manifest.json"}
    assert run([verb, str(inside), *words, "--run-unvetted-code"]) not in (OK, REFUSED)  # it is no manifest
    assert not (tmp_path / MARKER).exists()
