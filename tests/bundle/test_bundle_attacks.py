"""A gallery of attacks: each is refused before anything runs, with the place named; no payload writes its marker."""

from __future__ import annotations

import os
import pickle
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_bundle import change_json, copy, places, small_bundle

from segpipe.bundle.verify import Verification, verify_bundle
from segpipe.bundle.vet.documents import SUMS, write_sums

INFERENCE, METADATA = "configs/inference.json", "configs/metadata.json"
Spoil = Callable[[Path, str], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("sound") / "tiny")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


class Payload:
    """Touches the marker when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def spoilt(sound: Path, tmp_path: Path, spoil: Spoil, marker: Path) -> Verification:
    """The verdict on a copy that was spoilt and given matching hashes, as whoever attacks would do."""
    root = copy(sound, tmp_path / "bundle")
    spoil(root, f"touch {marker}")
    write_sums(root)
    return verify_bundle(root)


def test_the_sound_bundle_passes_and_is_not_called_trusted(sound: Path) -> None:
    verdict = verify_bundle(sound)
    assert verdict.findings == []
    assert verdict.exit_code == 0 and verdict.intact is True
    assert verdict.as_dict()["trusted"] is False and "not trusted" in verdict.words
    assert {check.name for check in verdict.checks if check.status == "not run"} == {"network", "replay"}


def config(value: Any, file: str = INFERENCE) -> Spoil:
    """Put a value under the id ``evil``; MARK in it becomes the payload's command."""

    def spoil(root: Path, command: str) -> None:
        def filled(each: Any) -> Any:
            if isinstance(each, dict):
                return {filled(key): filled(item) for key, item in each.items()}
            if isinstance(each, list):
                return [filled(item) for item in each]
            return each.replace("MARK", command) if isinstance(each, str) else each

        change_json(root / file, lambda document: document.update({"evil": filled(value)}))

    return spoil


CONFIGS: dict[str, tuple[Any, str]] = {
    "os.system": ({"_target_": "os.system", "command": "MARK"}, "evil::_target_"),
    "torch.os.system": ({"_target_": "torch.os.system", "command": "MARK"}, "evil::_target_"),
    "run_cmd": ({"_target_": "monai.utils.run_cmd", "cmd_list": ["sh", "-c", "MARK"]}, "evil::_target_"),
    "run_cmd by its short name": ({"_target_": "run_cmd", "cmd_list": ["sh", "-c", "MARK"]}, "evil::_target_"),
    "subprocess in monai": (
        {"_target_": "monai.utils.misc.subprocess.run", "args": "MARK", "shell": True},
        "evil::_target_",
    ),
    "builtins.eval": ({"_target_": "builtins.eval", "source": "MARK"}, "evil::_target_"),
    "eval": ({"_target_": "eval"}, "evil::_target_"),
    "a target behind a macro": (
        {"name": "os.system", "run": {"_target_": "%evil::name", "command": "MARK"}},
        "evil::run::_target_",
    ),
    "a target by reference": ({"_target_": "@evil_name", "command": "MARK"}, "evil::_target_"),
    "a target by expression": ({"_target_": "$torch.os.system", "command": "MARK"}, "evil::_target_"),
    "a target that is no text": ({"_target_": ["os.system"]}, "evil::_target_"),
    "dots": ({"_target_": "os..system", "command": "MARK"}, "evil::_target_"),
    "deep": ([{"a": [{"b": {"_target_": "posix.system", "command": "MARK"}}]}], "evil::0::a::0::b::_target_"),
    "look-alike in a target": ({"_target_": "ｏs.system", "command": "MARK"}, "evil::_target_"),
    "look-alike in an expression": ("$ｔｏｒｃｈ.os.system('MARK')", "evil"),
    "import function": ("$__import__('os').system('MARK')", "evil"),
    "chain": ("$torch.os.system('MARK')", "evil"),
    "chain through numpy": ("$np.f2py.os.system('MARK')", "evil"),
    "import": ("$import evil", "evil"),
    "from import": ("$from os import system as sorted", "evil"),
    "dunder": ("$().__class__.__base__.__subclasses__()", "evil"),
    "dunder by reference": ("$@evaluator.__class__", "evil"),
    "open": ("$open('MARK', 'w')", "evil"),
    "lambda": ("$(lambda: torch.os.system('MARK'))()", "evil"),
    "walrus": ("$(x := torch.os)", "evil"),
    "f-string": ("$f'{torch.os.system(\"MARK\")}'", "evil"),
    "f-string that MONAI makes of a literal": ("$'@f{torch.os.system(\"MARK\")}'", "evil"),
    "rebound name": ("$[torch.system('MARK') for torch in [1]]", "evil"),
    "function as a value": ("$sorted(['MARK'], key=torch.os.system)", "evil"),
    "format": ("$'{0.__class__}'.format(@evaluator)", "evil"),
    "memory": ("$9**9**9", "evil"),
    "two stars": ("$dict(**@evil)", "evil"),
    "key that becomes part of the expression": (
        {"x or torch.os.system('MARK') or @y": {"a": 1, "b": "$@#a"}},
        "evil::x or torch.os.system('MARK') or @y::b",
    ),
    "file macro": ("%/etc/passwd.json::root", "evil"),
    "file macro of the bundle": ("%configs/other.yaml::net", "evil"),
    "reader that is code": ({"_target_": "LoadImaged", "keys": "image", "reader": "os.abort"}, "evil::reader"),
    "reader by reference": ({"_target_": "LoadImaged", "keys": "image", "reader": "@name"}, "evil::reader"),
    "writer that is code": ({"_target_": "SaveImaged", "keys": "pred", "writer": "os.abort"}, "evil::writer"),
    "loader as a value": ({"_target_": "LoadImage", "_mode_": "callable"}, "evil::_target_"),
    "loader in an expression": ("$monai.transforms.LoadImage('os.abort')", "evil"),
    "debugger": ({"_target_": "Compose", "_mode_": "debug"}, "evil::_mode_"),
    "debugger by an argument": ({"_target_": "Compose", "_debug_": True}, "evil::_debug_"),
    "pickled arrays": ({"_target_": "LoadImaged", "keys": "image", "allow_pickle": True}, "evil::allow_pickle"),
    "torch.load": ("$torch.load('models/model.pt', weights_only=False)", "evil"),
    "weights of the network": ({"_target_": "FlexibleUNet", "pretrained": True}, "evil::pretrained"),
    "requires": ({"_target_": "Compose", "_requires_": "$torch.os.system('MARK')"}, "evil::_requires_"),
    "disabled": ({"_target_": "Compose", "_disabled_": "$torch.os.system('MARK')"}, "evil::_disabled_"),
    "description": ({"_target_": "Compose", "_desc_": "$torch.os.system('MARK')"}, "evil::_desc_"),
}


@pytest.mark.parametrize("attack", CONFIGS)
def test_configs(attack: str, sound: Path, tmp_path: Path, marker: Path) -> None:
    value, place = CONFIGS[attack]
    verdict = spoilt(sound, tmp_path, config(value), marker)
    expected = place.replace("MARK", f"touch {marker}")
    assert (INFERENCE, expected) in places(verdict.findings)
    assert verdict.exit_code == 5 and "REFUSED" in verdict.words
    assert not marker.exists()


def test_keys_that_monai_takes_apart(sound: Path, tmp_path: Path, marker: Path) -> None:
    def spoil(root: Path, _command: str) -> None:
        change_json(
            root / INFERENCE,
            lambda document: document.update(
                {
                    "files#_target_": "os.listdir",
                    "checkpoint::_mode_": "callable",
                    "deterministic_transforms#0#reader": "os.abort",
                    "preprocessing#_target_": "LoadImaged",
                    "+dataset": {"_target_": "LoadImaged"},
                }
            ),
        )

    found = places(spoilt(sound, tmp_path, spoil, marker).findings)
    ends = ("files::_target_", "checkpoint::_mode_", "deterministic_transforms::0::reader", "preprocessing::_target_")
    assert {(INFERENCE, end) for end in (*ends, "dataset::_target_")} <= found


@pytest.mark.parametrize("text", ["$import evil", "%/etc/x.json", "$torch.os.system('x')", "@evaluator"])
def test_metadata_holds_no_expression(text: str, sound: Path, tmp_path: Path, marker: Path) -> None:
    def spoil(root: Path, _command: str) -> None:
        change_json(root / METADATA, lambda metadata: metadata.update(description=[{"deep": text}]))

    assert (METADATA, "description::0::deep") in places(spoilt(sound, tmp_path, spoil, marker).findings)


YAMLS = {
    "an anchor": ("hidden: &a '$torch.os.system(\"x\")'\nshown: {b: *a}\n", {"hidden", "shown::b"}),
    "a merge key": (
        "base: &a {_target_: os.system}\nnet:\n  <<: *a\n  command: x\n",
        {"base::_target_", "net::_target_"},
    ),
    "a key twice": ("net: {_target_: os.system}\nnet: {_target_: UNet}\n", {""}),
    "a Python object": ("net: !!python/object/apply:os.system ['x']\n", {""}),
    "NaN": ("value: .nan\n", {""}),
    "aliases without end": (
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)),
        {""},
    ),
    "an alias of itself": ("a: &a [*a]\n", {""}),
}


@pytest.mark.parametrize("attack", YAMLS)
def test_yaml(attack: str, sound: Path, tmp_path: Path, marker: Path) -> None:
    text, expected = YAMLS[attack]
    verdict = spoilt(sound, tmp_path, lambda root, _: (root / "configs/train.yaml").write_text(text), marker)
    assert {place for file, place in places(verdict.findings) if file == "configs/train.yaml"} == expected


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', "[" * 5000, '{"a": ' * 80 + "1" + "}" * 80])
def test_json_that_two_readers_may_read_differently(text: str, sound: Path, tmp_path: Path, marker: Path) -> None:
    verdict = spoilt(sound, tmp_path, lambda root, _: (root / "configs/train.JSON").write_text(text), marker)
    assert ("configs/train.JSON", "") in places(verdict.findings)


LOGGINGS = {
    "a file": ("class=FileHandler\nargs=('MARK',)", "class"),
    "a socket": ("class=handlers.SocketHandler\nargs=('localhost', 9)", "class"),
    "a class path": ("class=scripts.evil.Handler\nargs=()", "class"),
    "arguments that run": ("class=StreamHandler\nargs=(os.system('MARK'),)", "args"),
    "keyword arguments": ("class=StreamHandler\nkwargs={'stream': sys.stdout}", "kwargs"),
    "a factory": ("()=os.system\nclass=StreamHandler\nargs=()", "()"),
    "interpolation": ("class=StreamHandler\nargs=%(x)s", "args"),
}


@pytest.mark.parametrize("attack", LOGGINGS)
def test_logging(attack: str, sound: Path, tmp_path: Path, marker: Path) -> None:
    lines, key = LOGGINGS[attack]

    def spoil(root: Path, command: str) -> None:
        path = root / "configs/logging.conf"
        plain = "class=StreamHandler\nlevel=INFO\nformatter=plain\nargs=(sys.stdout,)"
        path.write_text(path.read_text().replace(plain, lines.replace("MARK", command)))

    found = places(spoilt(sound, tmp_path, spoil, marker).findings)
    assert ("configs/logging.conf", f"handler_console::{key}") in found
    assert not marker.exists()


def _pickled_weights(root: Path, command: str) -> None:
    with zipfile.ZipFile(root / "models/model.pt", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({"a": Payload(command)}, protocol=2))


def _npy(root: Path, command: str) -> None:
    np.save(root / "models/mean.npy", np.array([Payload(command)], dtype=object), allow_pickle=True)


def _file(name: str, content: bytes = b"open('x', 'w')") -> Spoil:
    def spoil(root: Path, _command: str) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)

    return spoil


FILES: dict[str, tuple[Spoil, str]] = {
    "pickled weights": (_pickled_weights, "models/model.pt"),
    "a bare pickle": (
        lambda root, command: (root / "models/model.pt").write_bytes(pickle.dumps(Payload(command))),
        "models/model.pt",
    ),
    "pickled array": (_npy, "models/mean.npy"),
    "numpy.py": (_file("numpy.py"), "numpy.py"),
    "a numpy folder": (_file("numpy/__init__.py"), "numpy/__init__.py"),
    "json.py": (_file("json.py"), "json.py"),
    "sitecustomize.py": (_file("sitecustomize.py"), "sitecustomize.py"),
    "own code": (_file("scripts/net.py"), "scripts/net.py"),
    "compiled": (_file("scripts/net.pyc"), "scripts/net.pyc"),
    "a library": (_file("scripts/net.so"), "scripts/net.so"),
    "a pickle": (_file("models/extra.pkl"), "models/extra.pkl"),
    "a path file": (_file("evil.pth"), "evil.pth"),
    "TorchScript": (_file("models/model.ts"), "models/model.ts"),
    "an unknown kind": (_file("models/model.xyz"), "models/model.xyz"),
}


@pytest.mark.parametrize("attack", FILES)
def test_files(attack: str, sound: Path, tmp_path: Path, marker: Path) -> None:
    spoil, file = FILES[attack]
    verdict = spoilt(sound, tmp_path, spoil, marker)
    assert file in {each.file for each in verdict.findings}
    assert not marker.exists()


def test_nothing_admits_a_file_that_shadows_a_package(sound: Path, tmp_path: Path) -> None:
    root = copy(sound, tmp_path / "bundle")
    (root / "numpy.py").write_text("")
    write_sums(root)
    (found,) = verify_bundle(root, ["numpy.py", "numpy"]).findings
    assert found.name is None and "installed numpy" in found.reason


def test_a_changed_byte_an_added_file_and_a_removed_line(sound: Path, tmp_path: Path) -> None:
    root = copy(sound, tmp_path / "bundle")
    weights = root / "models/model.pt"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    (root / "docs/note.txt").write_text("added")
    sums = root / SUMS
    sums.write_text("".join(line for line in sums.read_text().splitlines(True) if "LICENSE" not in line))
    verdict = verify_bundle(root)
    reasons = {(each.file, each.reason.partition(":")[0]) for each in verdict.checks[1].findings}
    assert reasons == {("models/model.pt", "changed"), ("docs/note.txt", "added"), ("LICENSE", "added")}
    assert verdict.intact is False
    sums.write_text(sums.read_text() * 2)
    assert SUMS in {each.file for each in verify_bundle(root).findings}


def test_a_downgrade(sound: Path, tmp_path: Path) -> None:
    root = copy(sound, tmp_path / "bundle")
    newer = {"monai_version": "1.10.0", "version": "0.1.0", "changelog": {"0.2.0": "b", "0.1.0": "a"}}
    change_json(root / METADATA, lambda metadata: metadata.update(newer))
    write_sums(root)
    assert places(verify_bundle(root).findings) == {(METADATA, "monai_version"), (METADATA, "version")}
    assert verify_bundle(root, ["monai_version", "version"]).findings == []


def packed(root: Path, path: Path, *more: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in sorted(root.rglob("*")):
            archive.write(each, f"tiny/{each.relative_to(root).as_posix()}")
        for name, content in more:
            archive.writestr(name, content)
    return path


def _link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("tiny/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


MEMBERS: dict[str, tuple[str | zipfile.ZipInfo, bytes]] = {
    "zip slip": ("tiny/../../marker", b"x"),
    "absolute": ("/tmp/marker", b"x"),
    "a drive": ("C:/marker", b"x"),
    "backslashes": ("tiny\\..\\..\\marker", b"x"),
    "a symlink": (_link(), b"/etc/passwd"),
    "a bomb": ("tiny/docs/bomb.txt", bytes(20_000_000)),
    "case": ("tiny/license", b"x"),
    "twice": ("tiny/LICENSE", b"x"),
    "a file as a folder": ("tiny/LICENSE/x.txt", b"x"),
}


@pytest.mark.parametrize("attack", MEMBERS)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives(attack: str, sound: Path, tmp_path: Path, marker: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    path = packed(sound, tmp_path / "deep/er/tiny.zip", MEMBERS[attack])
    verdict = verify_bundle(path)
    assert verdict.exit_code == 5
    assert [check.status for check in verdict.checks][:2] == ["refused", "not run"]
    assert not marker.exists() and not Path("/tmp/marker").exists()


def test_an_archive_that_lies_about_sizes(sound: Path, tmp_path: Path) -> None:
    path = packed(sound, tmp_path / "tiny.zip", ("tiny/docs/long.txt", bytes(5000)))
    content = bytearray(path.read_bytes())
    at = content.rindex(b"tiny/docs/long.txt") - 46 + 24
    content[at : at + 4] = struct.pack("<I", 10)
    path.write_bytes(content)
    verdict = verify_bundle(path)
    assert verdict.exit_code == 5 and verdict.checks[0].status == "refused"


def test_a_packed_bundle_passes_as_its_folder_does(sound: Path, tmp_path: Path) -> None:
    verdict = verify_bundle(packed(sound, tmp_path / "tiny.zip"))
    assert verdict.findings == [] and verdict.sha256 == verify_bundle(sound).sha256


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.symlink_to("/etc/passwd"),
        lambda path: path.symlink_to("/etc"),
        os.mkfifo,
        lambda path: path.with_name("license").write_text(""),
    ],
)
def test_folders_with_links_and_special_files(make: Callable[[Path], object], sound: Path, tmp_path: Path) -> None:
    root = copy(sound, tmp_path / "bundle")
    make(root / "thing")
    verdict = verify_bundle(root)
    assert verdict.exit_code == 5 and verdict.sha256 is None
    assert {each.file.lower() for each in verdict.findings} & {"thing", "license"}


def test_the_stranger_payloads_of_the_gallery_do_run_in_monai(marker: Path) -> None:
    """Otherwise an absent marker would show nothing."""
    from monai.bundle import ConfigParser

    literal = f"$'@f{{torch.os.system(\"touch {marker}\")}}'"
    assert ConfigParser({"f": 1, "evil": literal}).get_parsed_content("evil").endswith("]0")
    marker.unlink()
    key = f"x or torch.os.system('touch {marker}') or @y"
    parser = ConfigParser({"x": 0, "y": {"a": 1}, key: {"b": "$@#a"}})
    assert parser.get_parsed_content(f"{key}::b") == 1
    marker.unlink()
    pickle.loads(pickle.dumps(Payload(f"touch {marker}")))
    assert marker.exists()
