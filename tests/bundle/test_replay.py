"""Replaying a golden case: equal bits, a difference within the tolerance, or a refusal with numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from small_bundle import change_json, small_bundle

from segpipe.bundle import Bundle
from segpipe.bundle.golden.golden_case import array_sha256
from segpipe.bundle.replay import parent as replay
from segpipe.bundle.replay.parent import Limits, Ran, Replay, replay_bundle, run_isolated
from segpipe.bundle.verify import verify_bundle
from segpipe.bundle.vet.documents import write_sums
from segpipe.cli.app import run as segpipe
from segpipe.common import isolation
from segpipe.data.phantom import write_nifti
from zoo_bundles import NEEDED

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "docs/schemas/bundle.schema.json").read_text())
Change = Callable[[Ran, Path], object]


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    shutil.copytree(bundle.root, tmp_path / "copied")
    return tmp_path / "copied"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], None]:
    """Let the work of the isolated process be done in this one; ``change`` is what a hostile bundle would do then."""
    from segpipe.bundle.replay import child as replaying

    def install(change: Change = lambda ran, out: None) -> None:
        def run(root: Path, work: Path, request: dict[str, Any], limits: Limits) -> Ran:
            (work / "out").mkdir()
            replaying.replay({**request, "bundle": str(root), "work": str(work / "out")})
            ran = Ran({"network": None, "files": None, "calls": None, "surroundings": replaying.surroundings()})
            ran.answer = json.loads((work / "out" / replaying.ANSWER).read_text())
            change(ran, work / "out")
            return ran

        monkeypatch.setattr(replay, "run_isolated", run)

    install()
    return install


def replayed(root: Path) -> Replay:
    return replay_bundle(root, json.loads((root / "configs/metadata.json").read_text()))


def reasons(found: Replay, check: str = "replay") -> str:
    return "; ".join(f"{each.file} {each.text} {each.reason}" for each in found.findings[check])


def change_scores(root: Path, by: float, elsewhere: bool = True) -> None:
    """Record scores that are a little different, with hashes that fit, as if on another machine."""
    scores = np.load(root / "golden/scores.npy") + np.float32(by)
    np.save(root / "golden/scores.npy", scores)

    def change(document: dict[str, Any]) -> None:
        document["scores"]["sha256_of_array"] = array_sha256(scores)
        if elsewhere:
            document["recorded_with"]["hardware"]["cpu_capability"] = "AVX1024"

    change_json(root / "golden/golden.json", change)


def test_equal_bits_where_versions_and_hardware_agree(bundle: Bundle, here: Any) -> None:
    found = replayed(bundle.root)
    assert not found.findings["network"] and not found.findings["replay"]
    assert found.numbers is not None
    assert found.numbers["bit_equal"] and found.numbers["max_score_difference"] == 0
    assert found.numbers["differs_here"] == []
    assert found.golden == "the golden case comes out bit by bit, recorded with the same versions and hardware"
    assert found.network == "1 x 1 x 16 x 16 x 16 becomes 1 x 3 x 16 x 16 x 16"


def test_elsewhere_a_difference_within_the_tolerance_passes_and_is_said(copied: Path, here: Any) -> None:
    change_scores(copied, 1e-4)
    found = replayed(copied)
    assert not found.findings["replay"] and found.numbers is not None and found.golden is not None
    assert not found.numbers["bit_equal"] and found.numbers["within_tolerance"]
    assert found.numbers["max_score_difference"] == pytest.approx(1e-4, rel=1e-2)
    assert "largest difference of a score 0.0001, 0 of " in found.golden
    assert "cpu capability AVX1024, here" in found.golden


def test_here_the_same_difference_is_refused(copied: Path, here: Any) -> None:
    change_scores(copied, 1e-4, elsewhere=False)
    found = replayed(copied)
    assert found.golden is None
    assert "largest difference of a score 0.0001" in reasons(found) and "equal bits" in reasons(found)


def test_elsewhere_a_difference_beyond_the_tolerance_is_refused(copied: Path, here: Any) -> None:
    change_scores(copied, 0.02)
    found = replayed(copied)
    assert "largest difference of a score 0.02" in reasons(found)
    assert "at most 0.001 and 0.10%" in reasons(found)
    assert found.numbers is not None and not found.numbers["within_tolerance"]


def test_another_label_map_is_refused_with_the_number_of_voxels(copied: Path, here: Any) -> None:
    image = nib.load(copied / "golden/labels.nii.gz")
    labels = np.asarray(image.dataobj).copy()
    labels[:3, 0, 0] = (labels[:3, 0, 0] + 1) % 3
    write_nifti(copied / "golden/labels.nii.gz", labels, image.affine)
    change_json(
        copied / "golden/golden.json", lambda document: document["labels"].update(sha256_of_array=array_sha256(labels))
    )
    found = replayed(copied)
    assert f"3 of {labels.size} voxels with another label" in reasons(found)


def test_other_weights_are_refused(copied: Path, here: Any) -> None:
    import torch

    state = torch.load(copied / "models/model.pt", weights_only=True)
    torch.save({name: value * 1.01 for name, value in state.items()}, copied / "models/model.pt")
    assert "largest difference of a score" in reasons(replayed(copied))


def test_weights_that_do_not_fit_are_a_finding(copied: Path, here: Any) -> None:
    change_json(copied / "configs/inference.json", lambda config: config["network_def"].update(channels=[4, 8, 17]))
    found = replayed(copied)
    assert "cannot be built with its weights" in reasons(found, "network") and "size mismatch" in reasons(
        found, "network"
    )
    assert "its inference fails" in reasons(found)


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_metadata_that_promises_another_network(copied: Path, here: Any, side: str) -> None:
    def change(metadata: dict[str, Any]) -> None:
        (tensor,) = metadata["network_data_format"][side].values()
        tensor["num_channels"] = 2

    change_json(copied / "configs/metadata.json", change)
    found = replayed(copied)
    assert ("the metadata says 2 channels" if side == "outputs" else "expected input") in reasons(found, "network")


def test_what_a_hostile_process_hands_over_is_refused(bundle: Bundle, here: Any, tmp_path: Path) -> None:
    def other_shape(_: Ran, out: Path) -> None:
        np.save(out / "labels.npy", np.zeros((1, 2, 3), np.uint8))

    def pickled(_: Ran, out: Path) -> None:
        np.save(out / "scores.npy", np.array([{}], object), allow_pickle=True)

    def link(_: Ran, out: Path) -> None:
        (out / "labels.npy").rename(tmp_path / "labels.npy")
        (out / "labels.npy").symlink_to(tmp_path / "labels.npy")

    def no_numbers(_: Ran, out: Path) -> None:
        np.save(out / "scores.npy", np.load(out / "scores.npy") * np.float32("nan"))

    def huge(_: Ran, out: Path) -> None:
        np.save(out / "scores.npy", np.zeros(10**6, np.float32))

    def nothing(_: Ran, out: Path) -> None:
        (out / "labels.npy").unlink()

    changes = [
        other_shape,
        pickled,
        link,
        no_numbers,
        huge,
        nothing,
        lambda ran, _: ran.answer.clear() or (_ / "labels.npy").unlink(),
    ]
    for change in changes:
        here(change)
        found = replayed(bundle.root)
        assert found.golden is None and found.findings["replay"], change


def test_no_golden_case_and_no_shape_is_nothing_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = small_bundle(tmp_path / "small")
    monkeypatch.setattr(replay, "run_isolated", lambda *_: pytest.fail("nothing is to be run"))
    assert replayed(root) == Replay()
    verdict = verify_bundle(root, replay=True)
    assert {check.name: check.status for check in verdict.checks if check.name in ("network", "replay")} == {
        "network": "absent",
        "replay": "absent",
    }
    assert verdict.outcome == "static checks passed" and verdict.exit_code == 0


def test_nothing_runs_after_a_refusal(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied / "extra.py").write_text("raise SystemExit")
    monkeypatch.setattr(replay, "replay_bundle", lambda *_: pytest.fail("nothing may run"))
    verdict = verify_bundle(copied, replay=True)
    assert verdict.exit_code == 5 and verdict.checks[-1].status == "not run"
    write_sums(copied)
    assert verify_bundle(copied, ["extra.py"]).checks[-1].detail == "not asked for"


@pytest.mark.parametrize("by", [0.0, 0.5])
def test_the_verdict_in_words_and_json(copied: Path, here: Any, by: float, capsys: pytest.CaptureFixture[str]) -> None:
    change_scores(copied, by)
    write_sums(copied)
    code = segpipe(["bundle", "verify", str(copied), "--json"])
    printed = json.loads(capsys.readouterr().out)
    Draft202012Validator(SCHEMA).validate(printed)
    assert code == (5 if by else 0)
    assert printed["verdict"] == ("refused" if by else "static checks and replay passed")
    assert printed["trusted"] is False and printed["isolation"] == "no network, no other files, no programs"
    assert printed["replay"]["max_score_difference"] == pytest.approx(by)
    segpipe(["bundle", "verify", str(copied)])
    words = " ".join(capsys.readouterr().out.split())
    assert ("REFUSED: do not run it. It ran in a process of its own alone" in words) == bool(by)
    assert ("Replay passed: the golden case comes out bit by bit" in words) == (not by)
    assert segpipe(["bundle", "verify", str(copied), "--no-replay", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["isolation"] is None


def program(monkeypatch: pytest.MonkeyPatch, path: Path, code: str) -> None:
    """A program in the place of `segpipe.common.isolation`, which begins as that does."""
    path.write_text(
        "import json, os, signal, sys, time\n"
        "request = json.loads(sys.stdin.buffer.readline())\n"
        "said = {'network': 'no such thing here', 'files': 'nor this', 'calls': '', 'surroundings': {}}\n"
        "def begin():\n"
        "    sys.stdout.write(json.dumps(said) + '\\n'); sys.stdout.flush(); os.dup2(2, 1)\n" + code
    )
    monkeypatch.setattr(isolation, "__file__", str(path))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("begin(); os.kill(os.getpid(), signal.SIGSEGV)", "the process was ended by SIGSEGV"),
        ("begin(); os.kill(os.getpid(), signal.SIGKILL)", "as the system ends what takes too much memory"),
        ("begin(); time.sleep(60)", "no answer in 2 s on a machine with load"),
        ("begin(); os.fork() or time.sleep(60)", "left no answer"),
        ("begin(); sys.stderr.write('x' * 10**7 + '\\nlast words\\n'); os._exit(3)", "ended with code 3"),
        ("begin(); raise MemoryError('all of it')", "ended with code 1: MemoryError: all of it"),
        ("begin(); open('answer.json', 'w').write('[1]')", "left no answer"),
        ("begin(); os.symlink('/etc/passwd', 'answer.json')", "left no answer"),
        ("begin(); print('{\"network\": null}'); open('answer.json', 'w').write('{\"golden\": 3}')", None),
    ],
)
def test_a_process_that_does_not_come_to_its_end(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, expected: str | None
) -> None:
    program(monkeypatch, tmp_path / "program.py", code)
    (tmp_path / "work").mkdir()
    ran = run_isolated(copied, tmp_path / "work", {"input": None, "golden": 0}, Limits(seconds=2))
    assert ran.isolation == ("none", "no such thing here; nor this")
    assert (ran.ended is None) == (expected is None) and (expected or "") in (ran.ended or "")
    assert ran.answer == {}


def test_a_process_that_cannot_begin_is_no_fault_of_the_bundle(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(monkeypatch, tmp_path / "program.py", "raise ImportError('no torch')")
    verdict = verify_bundle(copied, replay=True)
    assert verdict.exit_code == 0 and verdict.outcome == "static checks passed"
    checks = {check.name: (check.status, check.detail) for check in verdict.checks}
    assert checks["replay"] == ("not run", "the process ended with code 1: ImportError: no torch")


def test_a_crash_is_a_finding(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(monkeypatch, tmp_path / "program.py", "begin(); os.abort()")
    verdict = verify_bundle(copied, replay=True)
    assert verdict.exit_code == 5
    assert "SIGABRT" in verdict.findings[0].text and "isolation: none (no such thing here; nor this)" in verdict.words


def test_the_process_gets_neither_the_expected_results_nor_the_users_environment(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    program(
        monkeypatch,
        tmp_path / "program.py",
        "begin(); from pathlib import Path\n"
        "names = sorted(str(p.relative_to(request['bundle'])) for p in Path(request['bundle']).rglob('*'))\n"
        "seen = {'names': names, 'env': dict(os.environ), 'request': request}\n"
        "Path('answer.json').write_text(json.dumps({'seen': seen}))",
    )
    (tmp_path / "work").mkdir()
    seen = run_isolated(copied, tmp_path / "work", {"input": None, "golden": 0}, Limits()).answer["seen"]
    assert [name for name in seen["names"] if name.startswith("golden")] == [
        "golden",
        "golden/images",
        "golden/images/image.nii.gz",
    ]
    assert "secret" not in json.dumps(seen) and str(Path.home()) != seen["env"]["HOME"]
    assert seen["env"]["HOME"] == str(tmp_path / "work/out") and str(copied) not in json.dumps(seen)


NET = """
import os, socket, subprocess
import torch

def attempt(what):
    try:
        what()
        return True
    except OSError:
        return False

class Net(torch.nn.Conv3d):
    def __init__(self, outside, **arguments):
        super().__init__(**arguments)
        reached = [
            attempt(lambda: socket.create_connection(("127.0.0.1", 9), timeout=1)) or
            attempt(lambda: socket.create_connection(("192.0.2.1", 80), timeout=1)),
            attempt(lambda: open(outside + "/marker", "w")),
            attempt(lambda: open(outside + "/secret").read()),
            attempt(lambda: subprocess.run(["/bin/true"])),
        ]
        if any(reached):
            raise RuntimeError(f"reached {reached}")
"""


@pytest.mark.slow
def test_in_earnest(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    """The real process: torch and MONAI work in it, and the bits are those of another process."""
    assert segpipe(["bundle", "verify", str(bundle.root), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    Draft202012Validator(SCHEMA).validate(printed)
    assert printed["verdict"] == "static checks and replay passed" and printed["replay"]["bit_equal"]


@pytest.mark.slow
def test_allowed_code_of_a_bundle_reaches_nothing(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    root = small_bundle(tmp_path / "hostile")
    (root / "scripts").mkdir()
    (root / "scripts/__init__.py").write_text("")
    (root / "scripts/net.py").write_text(NET)
    change_json(
        root / "configs/inference.json",
        lambda config: config["network_def"].update({"_target_": "scripts.net.Net", "outside": str(outside)}),
    )
    shape = {"num_channels": 1, "spatial_shape": ["*", "8*n", 16]}
    change_json(
        root / "configs/metadata.json",
        lambda metadata: (
            metadata["network_data_format"]["inputs"]["image"].update(shape),
            metadata["network_data_format"]["outputs"]["pred"].update(num_channels=2),
        ),
    )
    write_sums(root)
    verdict = verify_bundle(root, ["scripts/__init__.py", "scripts/net.py", "scripts.net.Net"], replay=True)
    assert verdict.replay is not None and verdict.replay.isolation is not None
    if verdict.replay.isolation == "no network, no other files, no programs":
        assert not verdict.findings, verdict.findings
        assert verdict.replay.network == "1 x 1 x 64 x 8 x 16 becomes 1 x 2 x 64 x 8 x 16"
        assert not (outside / "marker").exists()


@pytest.mark.slow
@pytest.mark.parametrize("make", NEEDED)
def test_a_foreign_bundle_whose_names_are_allowed_is_built(make: Callable[[Path], Path], tmp_path: Path) -> None:
    verdict = verify_bundle(make(tmp_path / "zoo"), NEEDED[make], replay=True)
    assert not verdict.findings
    checks = {check.name: check for check in verdict.checks}
    assert checks["network"].detail.startswith("1 x 1 x 32 x 32 x 32 becomes 1 x 3 x 32 x 32 x 32")
    assert checks["replay"].status == "absent"


@pytest.mark.slow
def test_memory_is_bounded(bundle: Bundle, tmp_path: Path) -> None:
    root = shutil.copytree(bundle.root, tmp_path / "hungry")
    metadata = json.loads((root / "configs/metadata.json").read_text())
    metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] = [2048, 2048, 2048]
    found = replay_bundle(root, metadata, Limits(memory_bytes=3 * 2**30))
    assert "allocate" in reasons(found, "network") and found.golden is not None
