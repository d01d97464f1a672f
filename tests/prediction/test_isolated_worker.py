"""What code of a bundle reaches in the worker, with vetting switched off: its results and a folder of its own alone."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

import segpipe
from segpipe.bundle.open import open_bundle
from segpipe.cli.app import run
from segpipe.common.isolation import gpu_nodes, in_words, is_isolated
from segpipe.errors import DataError, RefusedError
from segpipe.prediction import places
from segpipe.prediction.cases import InputCase
from segpipe.prediction.places import Places
from tiny_bundle import write_bundle, write_scan

ALL = "no network, no other files, no programs"
NET = """
import os, signal, socket, subprocess, time
from pathlib import Path
import torch

BUNDLE = Path(__file__).parents[1]

def daemon(mark):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for name in range(200):
                Path(mark).write_text(str(os.getpid()))
                time.sleep(0.1)
        os._exit(0)

class Net(torch.nn.Conv3d):
    def __init__(self, outside, port, **arguments):
        super().__init__(**arguments)
        self.outside, self.port = Path(outside), port

    def forward(self, x):
        outside = self.outside
        out = next(Path(folder) for folder in [os.environ["HOME"]]).parents[1]
        tries = {
            "write_home": lambda: (outside / "home/.bashrc").write_text("evil"),
            "append_home": lambda: open(outside / "home/.bashrc", "a").write("evil"),
            "delete_home": lambda: (outside / "home/.bashrc").unlink(),
            "rename_home": lambda: (outside / "home/.bashrc").rename(outside / "home/other"),
            "truncate_home": lambda: os.truncate(outside / "home/.bashrc", 0),
            "chmod_home": lambda: os.chmod(outside / "home/.bashrc", 0o777),
            "utime_home": lambda: os.utime(outside / "home/.bashrc", (0, 0)),
            "read_key": lambda: (outside / "home/.ssh/id").read_text(),
            "list_home": lambda: os.listdir(outside / "home"),
            "temporary": lambda: Path("/tmp/segpipe_isolation_marker").write_text("x"),
            "shared_memory": lambda: Path("/dev/shm/segpipe_isolation_marker").write_text("x"),
            "write_bundle": lambda: (BUNDLE / "configs/more.json").write_text("{}"),
            "change_bundle": lambda: (BUNDLE / "models/model.pt").write_bytes(b""),
            "chmod_bundle": lambda: os.chmod(BUNDLE / "models/model.pt", 0),
            "other_scan": lambda: (outside / "home/other.nii.gz").read_bytes(),
            "change_scan": lambda: (outside / "home/scan.nii.gz").write_bytes(b""),
            "state_of_batch": lambda: open(out / "predictions.jsonl", "a").write("x"),
            "finished_case": lambda: (out / "before").mkdir(),
            "connect": lambda: socket.create_connection(("127.0.0.1", self.port), timeout=2),
            "service": lambda: socket.socket(socket.AF_UNIX).connect(str(outside / "service")),
            "program": lambda: subprocess.run(["/bin/true"], check=True),
            "fork": lambda: daemon(outside / "home/daemon"),
            "kill_parent": lambda: os.kill(os.getppid(), 0),
            "parent": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
            "secret": lambda: os.environ["SECRET_TOKEN"],
            "link": lambda: os.symlink(outside / "home/.bashrc", "link"),
        }
        reached = []
        for name, attempt in tries.items():
            try:
                attempt()
                reached.append(name)
            except (OSError, KeyError):
                pass
        if reached:
            raise ValueError(f"reached {reached}")
        Path("own").write_text("its home is its own")
        return super().forward(x)
"""


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A home with files that nobody may touch, and the scan that is predicted among them."""
    home = tmp_path / "outside" / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".bashrc").write_text("mine")
    (home / ".ssh/id").write_text("secret")
    write_scan(home / "other.nii.gz", seed=1)
    write_scan(home / "scan.nii.gz")
    return tmp_path / "outside"


def hostile(root: Path, outside: Path, port: int = 9) -> Path:
    write_bundle(root)
    (root / "scripts").mkdir()
    (root / "scripts/__init__.py").write_text("")
    (root / "scripts/net.py").write_text(NET)
    config = json.loads((root / "configs/inference.json").read_text())
    config["network_def"].update({"_target_": "scripts.net.Net", "outside": str(outside), "port": port})
    (root / "configs/inference.json").write_text(json.dumps(config))
    return root


def contents(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Of all files, their mode, time and bytes."""
    facts = {path: path.stat() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {str(path): (fact.st_mode, fact.st_mtime_ns, path.read_bytes()) for path, fact in facts.items()}


@pytest.mark.slow
def test_code_of_a_bundle_reaches_nothing(
    outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as service:
        service.bind(str(outside / "service"))
        service.listen()
        root = hostile(tmp_path / "hostile", outside, server.getsockname()[1])
        before = contents(outside), contents(root)
        words = ["predict", str(root), str(outside / "home/scan.nii.gz"), str(tmp_path / "out"), "--json"]
        code = run([*words, "--device", "cpu", "--run-unvetted-code"])
    document = json.loads(capsys.readouterr().out)
    if document["isolation"] == ALL:
        assert (code, document["cases"][0]["reason"]) == (0, None)
        assert (contents(outside), contents(root)) == before
        assert not Path("/tmp/segpipe_isolation_marker").exists()
    assert document["vetting"]["passed"] is False
    result = json.loads((tmp_path / "out/scan/result.json").read_text())
    assert (result["isolation"], result["isolation_reason"]) == (ALL, None)
    assert json.loads((tmp_path / "out/summary.json").read_text())["cases"][0]["isolation"] == ALL
    assert not list(tmp_path.rglob("own")) and not (tmp_path / "out/.partial").exists()
    assert (tmp_path / "out/scan/segmentation.nii.gz").is_file()


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "marker"),
    [("bundle_runs_program", "segpipe_marker"), ("bundle_overwrites_any_file", "segpipe_marker_home")],
)
def test_known_attacks_leave_nothing_outside(name: str, marker: str, tmp_path: Path) -> None:
    source = Path(os.environ["SEGPIPE_DATA"]) / "field" / "bundles" / name
    markers = {Path("/tmp") / marker, Path(os.environ.get("TMPDIR", "/tmp")) / marker}
    for path in markers:
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
    root = Path(shutil.copytree(source, tmp_path / "bundle"))
    before = contents(root)
    scan = write_scan(tmp_path / "scan.nii.gz", shape=(16, 16, 16))
    code = run(["predict", str(root), str(scan), str(tmp_path / "out"), "--device", "cpu", "--run-unvetted-code"])
    assert code in (0, 3, 4)
    assert not any(path.exists() for path in markers) and contents(root) == before


UNISOLATED = """
from segpipe.common import isolation
isolation.isolate = lambda request: {"network": "no such kernel", "files": "nor such", "calls": "no seccomp"}
isolation.main()
"""


@pytest.mark.slow
def test_where_nothing_isolates_a_foreign_bundle_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Places, "command", property(lambda _: [places.sys.executable, "-c", UNISOLATED]))
    root, scan = write_bundle(tmp_path / "b"), write_scan(tmp_path / "scan.nii.gz")
    words = ["predict", str(root), str(scan), str(tmp_path / "out"), "--device", "cpu"]
    assert run([*words, "--allow", "glob", "--json"]) == 5
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["found"] == "no such kernel; nor such" and "--allow-unisolated" in error["hint"]
    assert not (tmp_path / "out/scan").exists()
    assert run([*words, "--allow", "glob", "--allow-unisolated"]) == 0  # as the hint says
    assert "isolation: none (no such kernel; nor such)" in " ".join(capsys.readouterr().out.split())


def test_which_bundles_have_to_be_isolated(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "closed")
    case = InputCase("a", (tmp_path / "a.nii.gz",))

    def is_required(path: Path, **terms: Any) -> bool:
        return Places.of(tmp_path, [open_bundle(path, **terms)], [case], "cpu").is_required

    assert not is_required(root)
    assert is_required(root, allow="glob") and is_required(root, run_unvetted_code=True)
    assert not is_required(root, run_unvetted_code=True, allow_unisolated=True)
    steps = [{"_target_": "LoadImaged", "keys": "image"}, {"_target_": "RandFlipd", "keys": "image"}]
    foreign = write_bundle(tmp_path / "foreign", deterministic=steps)
    assert is_required(foreign) and not is_required(foreign, allow_unisolated=True)


def test_in_this_process_a_foreign_bundle_runs_only_when_told_to(tmp_path: Path) -> None:
    root, scan = write_bundle(tmp_path / "b"), write_scan(tmp_path / "scan.nii.gz")
    with pytest.raises(RefusedError, match="this very process") as caught:
        segpipe.open_bundle(root, allow="glob").segment(scan)
    assert "allow_unisolated=True" in str(caught.value.hint)
    assert segpipe.open_bundle(root, allow="glob", allow_unisolated=True).segment(scan).voxels


def test_what_a_worker_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("SEGPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    bundle = open_bundle(write_bundle(tmp_path / "b"))
    cases = [InputCase(str(number), (Path(f"scans/{number}.nii"),)) for number in range(3)]
    given = Places.of(Path("out"), [bundle], cases, "cpu")
    assert given.readable[2:] == tuple(str(tmp_path / f"scans/{number}.nii") for number in range(3))
    assert given.caches == (str(tmp_path / "cache/openvino" / bundle.sha256),) and not given.gpu
    environment = given.environment
    assert environment["HOME"] == environment["TMPDIR"] == str(tmp_path / "out/~worker")
    assert environment["OMP_NUM_THREADS"] == "3" and "SECRET_TOKEN" not in environment
    monkeypatch.setattr(places, "MOST_FILES", 2)
    assert Places.of(Path("out"), [bundle], cases, "auto").readable[2:] == (str(tmp_path / "scans"),)


def test_gpus_are_given_by_name(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm", "dri/renderD128", "nvidia-caps/nvidia-cap1", "sda", "dri/card0"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [str(Path(path).relative_to(tmp_path)) for path in gpu_nodes(tmp_path)]
    assert sorted(names) == ["dri/renderD128", "nvidia-caps/nvidia-cap1", "nvidia-uvm", "nvidia0", "nvidiactl"]


def test_isolation_in_words() -> None:
    def report(network: str | None, files: str | None, calls: str | None) -> dict[str, str | None]:
        return {"network": network, "files": files, "calls": calls}

    assert in_words(report(None, None, None)) == (ALL, None)
    assert in_words(report(None, "no Landlock", None)) == ("no network", "no Landlock")
    assert in_words(report("no seccomp", None, "no seccomp")) == ("no other files, no programs", "no seccomp")
    assert in_words(report("a", "b", "c")) == ("none", "a; b")
    assert not is_isolated(report(None, "b", "c"))  # a namespace alone does not count
    assert is_isolated(report("a", None, "c")) and is_isolated(report(None, "b", None))


def test_results_are_plain_files(tmp_path: Path) -> None:
    from segpipe.common.result_folder import require_plain_files

    (tmp_path / "segmentation.nii.gz").touch()
    require_plain_files(tmp_path, ["segmentation.nii.gz"])
    for name, make in {
        "link": lambda path: path.symlink_to("/etc/passwd"),
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
        "second": lambda path: os.link(tmp_path / "segmentation.nii.gz", path),
    }.items():
        make(tmp_path / name)  # type: ignore[operator]
        with pytest.raises(DataError, match="plain files"):
            require_plain_files(tmp_path, [])
        (tmp_path / name).rmdir() if name == "folder" else (tmp_path / name).unlink()
    with pytest.raises(DataError, match="plain files"):
        require_plain_files(tmp_path, ["../segmentation.nii.gz"])
