"""The first of two stages is judged as strictly as the second, by its own files."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_bundle import change_json

from segpipe.bundle.open import open_bundle
from segpipe.bundle.vet import vet_bundle
from segpipe.errors import DataError
from tiny_two_stages import write_two_stages

CONFIG, METADATA = "first_stage/configs/inference.json", "first_stage/configs/metadata.json"


@pytest.fixture
def both(tmp_path: Path) -> Path:
    return write_two_stages(tmp_path / "both")


def found_in(root: Path, file: str, purpose: str = "predict") -> set[str]:
    return {each.place for each in vet_bundle(root, (), purpose).findings if each.file == file}  # type: ignore[arg-type]


def test_a_first_stage_that_would_run_whole_is_refused(both: Path):
    assert open_bundle(both).first_stage is not None
    change_json(both / CONFIG, lambda config: config["evaluator"].update(amp=False))
    with pytest.raises(DataError, match="do not fit") as caught:
        open_bundle(both)
    assert "first stage, evaluator: amp" in (caught.value.found or "")


def test_what_the_config_of_the_first_stage_runs_counts_for_predict(both: Path):
    assert found_in(both, CONFIG) == found_in(both, METADATA) == set()
    change_json(both / CONFIG, lambda config: config.update(evil="$__import__('os').system('id')"))
    (both / "first_stage/configs/train.json").write_text('{"evil": "$open(1)"}')
    assert found_in(both, CONFIG) == {"evil"}
    aside = [each.file for each in vet_bundle(both, (), "predict").aside]
    assert aside == ["first_stage/configs/train.json"]
    change_json(both / METADATA, lambda metadata: metadata.update(evil="@network_def"))
    assert found_in(both, METADATA) == found_in(both, METADATA, "all") == {"evil"}


def test_an_import_of_one_stage_is_none_of_the_other(both: Path):
    change_json(both / "configs/inference.json", lambda config: config.update(imports=["$import glob as g"]))
    change_json(both / CONFIG, lambda config: config.update(names="$g.glob('*')"))
    for purpose in ("predict", "all"):
        assert found_in(both, CONFIG, purpose) == {"names"}


def test_a_folder_of_that_name_alone_is_no_first_stage(both: Path):
    (both / METADATA).unlink()
    change_json(both / CONFIG, lambda config: config.update(evil="$open(1)"))
    assert found_in(both, CONFIG) == set()
    assert found_in(both, CONFIG, "all") == {"evil"}
