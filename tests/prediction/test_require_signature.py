"""predict --require-signature: refused before anything of a bundle is read, else recorded in each result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from segpipe.bundle.open import open_bundle
from segpipe.bundle.signing import fingerprint_of, make_keys, sign_bundle
from segpipe.bundle.vet.documents import write_sums
from segpipe.cli.app import run
from segpipe.common.files import read_json
from segpipe.errors import RefusedError
from tiny_bundle import write_bundle, write_scan

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
Signed = tuple[Path, Path]


class NoWorker:
    """A worker that must not be asked for anything."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the worker was asked to {name}")


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    """A signed bundle, and the public key."""
    root = write_bundle(tmp_path / "tiny")
    write_sums(root)
    private, public = make_keys(tmp_path / "clinic")
    sign_bundle(root, private)
    return root, public


def predict(bundle: Path, out: Path, key: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    scans = out.parent / "scans"
    scans.mkdir(exist_ok=True)
    (scans / "a.nii.gz").write_bytes(b"no image")
    code = run(["predict", str(bundle), str(scans), str(out), "--require-signature", str(key), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("how", ["other key", "no signature", "changed", "added", "metadata that nobody could read"])
def test_a_bundle_that_is_not_signed_so_is_refused(
    how: str, signed: Signed, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segpipe.prediction.batch.make_worker", lambda *_: NoWorker())
    root, key = signed
    if how == "other key":
        _, key = make_keys(tmp_path / "other")
    elif how == "no signature":
        (root / "model.sig").unlink()
    elif how == "added":
        (root / "docs").mkdir()
        (root / "docs/more.md").write_text("more")
        write_sums(root)
    else:
        file = root / "configs/metadata.json"
        file.write_text(file.read_text().replace("0.1.0", "0.1.1") if how == "changed" else "{")
        write_sums(root)
    code, printed = predict(root, tmp_path / "out", key, capsys)
    assert code == 5 and printed["error"]["exit_code"] == 5
    assert "sign" in printed["error"]["message"]
    assert not (tmp_path / "out").exists()


def test_a_signed_bundle_goes_on_and_results_say_by_whom(
    signed: Signed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, key = signed
    opened = open_bundle(root, key=key)
    assert opened.signed_by == fingerprint_of(key) == opened.facts["signed_by"]
    assert open_bundle(root).signed_by is None
    with pytest.raises(RefusedError):
        open_bundle(root, run_unvetted_code=True, key=make_keys(tmp_path / "other")[1])


@pytest.mark.slow
def test_the_whole_command(signed: Signed, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, key = signed
    write_scan(tmp_path / "scans" / "b.nii.gz")
    code, printed = predict(root, tmp_path / "out", key, capsys)
    assert code == 4 and [case["status"] for case in printed["cases"]] == ["failed", "done"]
    documents = {
        "predict": printed,
        "summary": read_json(tmp_path / "out" / "summary.json"),
        "result": read_json(tmp_path / "out" / "b" / "result.json"),
    }
    for name, document in documents.items():
        Draft202012Validator(read_json(SCHEMAS / f"{name}.schema.json")).validate(document)
        assert document["bundle"]["signed_by"] == fingerprint_of(key)


def test_the_parent_of_a_batch_imports_no_torch_for_it(signed: Signed) -> None:
    root, key = signed
    program = (
        "import sys; from pathlib import Path; from segpipe.bundle.signing import check_signature;"
        "check_signature(Path(sys.argv[1]), Path(sys.argv[2])); print(*{'torch', 'monai', 'ignite'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(root), str(key)], capture_output=True, check=True)
    assert done.stdout.split() == [] and done.stderr == b""
