"""Bundles made to take time, memory or the disk: each check does work in proportion to what there is, up to a limit."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from raw_zip import Part, raw_zip
from small_bundle import change_json, copy, small_bundle

from segpipe.bundle.open import open_bundle
from segpipe.bundle.pack import pack_bundle
from segpipe.bundle.supported_subset import resolve
from segpipe.bundle.verify import verify_bundle
from segpipe.bundle.vet.bundle_files import LONGEST, MOST_FINDINGS, Finding, Use
from segpipe.bundle.vet.configs import vet_config
from segpipe.bundle.vet.documents import requirements, vet_logging, write_sums
from segpipe.bundle.vet.names import Names
from segpipe.bundle.vet.reading import NotReadableError, read_document, read_documents
from segpipe.bundle.vet.syntax import as_evaluated, as_read, dotted_name
from segpipe.bundle.vet.weights import MOST_IN_PICKLE, vet_pickle
from segpipe.cli.app import run
from segpipe.errors import BAD_DATA, OK, REFUSED, DataError, RefusedError, SegpipeError

INFERENCE, METADATA, CARD = "configs/inference.json", "configs/metadata.json", "docs/README.md"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("sound") / "tiny")


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    return copy(sound, tmp_path / "bundle")


def work(deed: Callable[[], object]) -> int:
    """How many functions are called, those of C included: what does not depend on how busy the machine is."""
    count = 0

    def profile(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        deed()
    finally:
        sys.setprofile(before)
    return count


def document(path: Path, text: str) -> Callable[[], object]:
    path.write_text(text)

    def read() -> None:
        with contextlib.suppress(NotReadableError):
            read_document(path)

    return read


GROWING: dict[str, Callable[[Path, int], Callable[[], object]]] = {
    "JSON with a key twice after many keys": lambda folder, n: document(
        folder / "x.json", "{" + ",".join(f'"k{i}":1' for i in range(n)) + ',"k0":2}'
    ),
    "JSON of many mappings": lambda folder, n: document(folder / "x.json", json.dumps([{"a": {"b": 1}}] * n)),
    "YAML of plain keys": lambda folder, n: document(folder / "x.yaml", "".join(f"k{i}: 1\n" for i in range(n))),
    "YAML of plain keys in a row": lambda folder, n: document(
        folder / "x.yaml", "{" + ", ".join(f"k{i}" for i in range(n)) + "}"
    ),
    "YAML of merge keys": lambda folder, n: document(
        folder / "x.yaml", "a: &a {x: 1}\n" + "".join(f"k{i}: {{<<: *a}}\n" for i in range(n))
    ),
    "a pickle of bad opcodes": lambda _folder, n: (
        lambda: list(vet_pickle(b"\x80\x02" + b"\x82\x01" * n + b".", "", ""))
    ),
    "a pickle of good opcodes": lambda _folder, n: lambda: list(vet_pickle(b"\x80\x02" + b"N" * n + b".", "", "")),
    "logging sections": lambda folder, n: logging(folder / "l.conf", "".join(f"[s{i}]\na=1\n" for i in range(n))),
    "logging sections with defaults": lambda folder, n: logging(
        folder / "l.conf",
        "[DEFAULT]\n" + "".join(f"k{i}=1\n" for i in range(n)) + "".join(f"[s{i}]\n" for i in range(n)),
    ),
    "packages": lambda _folder, n: (
        lambda: requirements({"required_packages_version": {f"no-{i}": "1" for i in range(n)}})
    ),
    "an expression of references": lambda _folder, n: lambda: vet_config_of("$" + " + ".join(["@a"] * n)),
    "an expression of attributes": lambda _folder, n: lambda: vet_config_of("$(1)" + ".a" * n),
    "an expression of names": lambda _folder, n: lambda: vet_config_of("$np" + ".a" * n),
    "an expression of loops": lambda _folder, n: lambda: vet_config_of("$[x" + " for x in y" * n + "]"),
    "keys that lead into one": lambda _folder, n: lambda: vet_config_of(1, **{f"a::k{i}": 1 for i in range(n)}),
    "references to many keys": lambda _folder, n: (
        lambda: vet_config_of(
            [{"_target_": "LoadImaged", "keys": f"@k{i}"} for i in range(n)], **{f"k{i}": "a" for i in range(n)}
        )
    ),
    "references": lambda _folder, n: lambda: _resolved({f"a{i}": [f"@a{i + 1}"] * 2 for i in range(n)}),
}


def vet_config_of(value: Any, **others: Any) -> list[Use]:
    return list(vet_config({"x": value, **others}, "x.json", Names()))


def logging(path: Path, text: str) -> Callable[[], object]:
    path.write_text(text)
    return lambda: list(vet_logging(path, "l.conf"))


def _resolved(config: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        resolve("@a0", config)


@pytest.mark.parametrize("kind", GROWING)
def test_twice_as_much_takes_twice_the_work_at_most(kind: str, tmp_path: Path) -> None:
    vet_config_of({"_target_": "LoadImaged", "keys": "a"})  # what is looked up once
    once, twice = (work(GROWING[kind](tmp_path, n)) for n in (400, 800))
    assert twice < 2.3 * once


@pytest.mark.timeout(120)
def test_large_documents_take_seconds(tmp_path: Path) -> None:
    """Quadratic, the first took 90 s and the third 120 s."""
    (tmp_path / "x.json").write_text("{" + ",".join(f'"k{i}":1' for i in range(60_000)) + ',"k0":2}')
    with pytest.raises(NotReadableError, match="twice"):
        read_document(tmp_path / "x.json")
    (tmp_path / "x.yaml").write_text("".join(f"k{i}: 1\n" for i in range(45_000)))
    with pytest.raises(NotReadableError, match="KiB of YAML"):
        read_document(tmp_path / "x.yaml")
    assert len(list(vet_pickle(b"\x80\x02" + b"\x82\x01" * 12_000_000 + b".", "", ""))) == MOST_IN_PICKLE + 1


DOCUMENTS = {
    "many values": ("x.json", "[" + "1," * 400_000 + "1]", "values"),
    "deep": ("x.json", "[" * 10**5 + "]" * 10**5, "deep"),
    "deep mappings": ("x.json", '{"a":' * 70 + "1" + "}" * 70, "deep"),
    "deep YAML": ("x.yaml", "[" * 10**5, "deep"),
    "a number of many digits": ("x.json", "9" * 10**6, "digit"),
    "a number of many bits": ("x.json", "9" * 400, "64 bits"),
    "beyond all numbers": ("x.json", "1e999", "infinite"),
    "a YAML number of many digits": ("x.yaml", "a: 0x" + "f" * 10**5, "number of more"),
    "a YAML number of many bits": ("x.yaml", "a: 0x" + "f" * 90, "64 bits"),
    "hours, minutes, seconds and so on": ("x.yaml", "a: 1" + ":1" * 10**5, "number of more"),
    "half a character": ("x.json", '["\\ud800"]', "half a character"),
    "half a character as a key": ("x.json", '{"\\udfff": 1}', "half a character"),
    "half a character in YAML": ("x.yaml", 'a: "\\ud800"', "character"),
    "a long key": ("x.json", json.dumps({"a#" * 10**4: 1}), "key of more"),
    "expressions": ("x.json", json.dumps(["$1" + "+1" * 4000] * 200), "expressions"),
    "many expressions": ("x.json", json.dumps(["$1"] * 11_000), "expressions"),
    "many targets": ("x.json", json.dumps([{"_target_": "UNet"}] * 11_000), "targets"),
    "many macros": ("x.json", json.dumps(["%a"] * 11_000), "expressions"),
    "merge keys": (
        "x.yaml",
        "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 50)}]}}\n" for n in range(1, 9)),
        "merge keys",
    ),
    "aliases": (
        "x.yaml",
        "a0: &a0 [x, x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)),
        "values",
    ),
    "one key as two texts": ("x.yaml", "0x1: a\n1: b\n", "twice"),
    "one truth as two texts": ("x.yaml", "yes: a\ntrue: b\n", "twice"),
    "a byte order mark": ("x.json", "\ufeff{}", "BOM"),
    "a byte order mark in YAML": ("x.yaml", "\ufeffa: 1\n", "byte order"),
    "a line end of YAML 1.1": ("x.yaml", "a: b # c\u2028_target_: d\n", "line end"),
    "metadata": ("configs/metadata.json", json.dumps("a" * 2**20), "1 MiB"),
}


@pytest.mark.parametrize("kind", DOCUMENTS)
@pytest.mark.timeout(60)
def test_documents_beyond_any_use_are_refused(kind: str, tmp_path: Path) -> None:
    file, text, words = DOCUMENTS[kind]
    (tmp_path / "configs").mkdir()
    (tmp_path / file).write_text(text)
    with pytest.raises(NotReadableError, match=words):
        read_document(tmp_path / file)


@pytest.mark.timeout(60)
def test_copies_and_replacements_are_made_once() -> None:
    """What C does counts as one call: quadratic, each of these took minutes."""
    keys = {f"a::k{n}": 1 for n in range(100_000)}
    assert len(as_read({"a": {}, **keys})[0]["a"]) == 100_000
    many = "$" + "".join(f"@a{n}" for n in range(200_000))
    assert as_evaluated(many).endswith("__local_refs['a199999']")
    assert dotted_name(ast.parse("a" + ".b" * 500, mode="eval").body) == "a" + ".b" * 500
    deep = {"k" * 900: {"l" * 900: "$" + "@#a" * 3000}}
    assert [each.reason for use in vet_config(deep, "x.json", Names()) for each in use.findings] == [
        "more than 10000 characters, or a name that MONAI keeps for itself"
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("name", ["x.json", "x.yaml"])
def test_other_encodings_are_refused(encoding: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes('{"a": 1}'.encode(encoding))
    with pytest.raises(NotReadableError):
        read_document(tmp_path / name)


def test_the_limits_hold_for_all_documents_together(tmp_path: Path) -> None:
    paths = {f"{n}.yaml": tmp_path / f"{n}.yaml" for n in range(4)}
    for path in paths.values():
        path.write_text("a: 1 #" + "x" * 90_000)
    documents, unreadable = read_documents(paths)
    assert sorted(documents) == ["0.yaml", "1.yaml"] and [each.file for each in unreadable] == ["2.yaml", "3.yaml"]


def test_a_manifest_of_twenty_thousand_cases_is_read(tmp_path: Path) -> None:
    case = {"id": "case_00001", "image": "images/case_00001.nii.gz", "label": "labels/case_00001.nii.gz"}
    (tmp_path / "manifest.json").write_text(json.dumps({"cases": [{**case, "fold": 1, "ünïcode": "é"}] * 20_000}))
    assert len(read_document(tmp_path / "manifest.json")["cases"]) == 20_000


def test_findings_are_counted_and_the_first_are_shown(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "configs/logging.conf").write_text("".join(f"[s{n}]\n" for n in range(3000)))
    write_sums(root)
    verdict = verify_bundle(root)
    (check,) = (check for check in verdict.checks if check.name == "logging")
    assert check.detail == "3000 found" and len(check.findings) == MOST_FINDINGS + 1
    assert check.findings[-1].text == f"and {3000 - MOST_FINDINGS} more"
    assert run(["bundle", "verify", str(root)]) == REFUSED
    assert f"and {3000 - MOST_FINDINGS} more" in capsys.readouterr().out


def test_what_a_finding_quotes_is_short_and_can_be_written() -> None:
    found = Finding("\udcff" * 10**6, "a" * 10**6, "\ud800", "b" * 10**6, "c" * 10**6)
    assert all(len(text or "") <= LONGEST * 6 for text in found.as_dict().values()) and found.name is None
    json.dumps(found.as_dict(), ensure_ascii=False).encode()


# References ----------------------------------------------------------------------------------------------------

CHAINS: dict[str, dict[str, Any]] = {
    "plain": {f"a{n}": f"@a{n + 1}" for n in range(5000)},
    "in mappings": {f"a{n}": {"x": f"@a{n + 1}"} for n in range(1000)},
    "in deep lists": {f"a{n}": [[[[[f"@a{n + 1}"]]]]] for n in range(300)},
    "in components": {f"a{n}": {"_target_": "Compose", "transforms": f"@a{n + 1}"} for n in range(1000)},
}


@pytest.mark.parametrize("kind", CHAINS)
@pytest.mark.parametrize("key", ["network_def", "preprocessing", "postprocessing", "inferer"])
def test_references_without_end_are_refused_as_data(
    kind: str, key: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_json(root / INFERENCE, lambda config: config.update({**CHAINS[kind], key: "@a0"}))
    write_sums(root)
    with pytest.raises(DataError, match="grow beyond any use"):
        open_bundle(root)
    assert verify_bundle(root).exit_code == REFUSED
    assert run(["predict", str(root), str(root), str(root.parent / "out")]) == BAD_DATA
    assert "Traceback" not in capsys.readouterr().err


def test_an_index_of_many_digits_leads_nowhere() -> None:
    assert resolve("@a#" + "9" * 5000, {"a": [1]}) == "@a#" + "9" * 5000


def test_references_of_a_usual_depth_are_followed() -> None:
    assert resolve("@a0", {**{f"a{n}": f"@a{n + 1}" for n in range(100)}, "a100": 7}) == 7


# Files and folders ---------------------------------------------------------------------------------------------


def commands(bundle: Path, out: Path) -> dict[str, list[str]]:
    return {
        "verify": ["bundle", "verify", str(bundle)],
        "verify as JSON": ["bundle", "verify", str(bundle), "--json"],
        "inspect": ["bundle", "inspect", str(bundle), "--json"],
        "pack": ["bundle", "pack", str(bundle), "-o", str(out / "p.zip")],
        "predict": ["predict", str(bundle), str(out), str(out / "out")],
    }


COMMANDS = tuple(commands(Path(), Path()))
NAMES = {
    "300 characters": b"tiny/docs/" + b"n" * 300 + b".md",
    "300 bytes": b"tiny/docs/" + "é".encode() * 150 + b".md",
    "a long path": b"tiny/" + b"folder/" * 200 + b"x.md",
    "a long path of long names": b"tiny/" + (b"f" * 250 + b"/") * 20 + b"x.md",
    "half a character": b"tiny/docs/\xed\xb3\xbf.md",
    "a byte that is no character": b"tiny/docs/\xff.md",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", NAMES)
def test_names_that_cannot_be_written_are_the_fault_of_the_bundle(
    name: str, command: str, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [Part(f"tiny/{p.relative_to(sound)}".encode(), p.read_bytes()) for p in sound.rglob("*") if p.is_file()]
    (tmp_path / "b.zip").write_bytes(raw_zip([*parts, Part(NAMES[name], flags=0x800)]))
    assert run(commands(tmp_path / "b.zip", tmp_path)[command]) == REFUSED
    said = capsys.readouterr()
    assert "free some space" not in said.err + said.out and "Traceback" not in said.err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", [b"\xff.md", b"\xed\xa0\x80", b"caf\xe9.json"])
def test_a_folder_with_a_name_in_no_known_encoding(
    name: bytes, command: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(os.fsdecode(os.fsencode(root / "docs") + b"/" + name)).write_text("")
    assert run(commands(root, tmp_path)[command]) == REFUSED
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.timeout(60)
@pytest.mark.parametrize("file", ["docs/x.md", CARD, INFERENCE, METADATA, "SHA256SUMS", "models/model.pt", "model.sig"])
def test_a_pipe_in_a_bundle_is_not_waited_for(file: str, root: Path, tmp_path: Path) -> None:
    (root / file).unlink(missing_ok=True)
    os.mkfifo(root / file)
    verdict = verify_bundle(root)
    assert [(each.file, each.text[0]) for each in verdict.findings] == [(file, "p")]
    for command in COMMANDS[2:4]:
        assert run(commands(root, tmp_path)[command]) == REFUSED
    try:
        assert open_bundle(root).intact in (True, None)
    except SegpipeError as error:
        assert error.exit_code in (2, 3, 5)


def test_folders_within_folders_come_to_an_end(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    for _ in range(1000):
        Path("d").mkdir()
        os.chdir("d")
    assert {each.reason.partition(":")[0] for each in verify_bundle(root).findings} == {"too long"}
    with pytest.raises(RefusedError, match="too deep"):
        open_bundle(root)
    for _ in range(1000):
        os.chdir("..")
        Path("d").rmdir()


def test_more_files_than_a_bundle_has(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("bundle_files", "documents"):
        monkeypatch.setattr(f"segpipe.bundle.vet.{module}.MOST_FILES", 8)
    assert [each.reason for each in verify_bundle(root).findings] == ["too many files, or too large ones"]
    with pytest.raises(RefusedError, match="too many"):
        open_bundle(root)


def test_a_card_that_nobody_would_read_is_not_read(root: Path, tmp_path: Path) -> None:
    with (root / CARD).open("r+b") as stream:
        stream.truncate(100 * 2**20)
    write_sums(root)
    verify_bundle(root)  # what is loaded once
    tracemalloc.start()
    verdict = verify_bundle(root)
    open_bundle(root)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 30 * 2**20 and verdict.exit_code == OK
    assert verdict.card.startswith("# tiny") and verdict.card.endswith(f"{100 * 2**20} bytes in all")


# Permissions ---------------------------------------------------------------------------------------------------


def packed(root: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as writing:
        for path in sorted(root.rglob("*")):
            writing.write(path, f"tiny/{path.relative_to(root)}")
    return archive


@pytest.mark.parametrize("mode", [0o4644, 0o2644, 0o1644, 0o6755])
def test_bits_that_give_other_rights_are_refused(mode: int, root: Path, tmp_path: Path) -> None:
    (root / CARD).chmod(mode)
    for bundle in (root, packed(root, tmp_path / "b.zip")):
        verdict = verify_bundle(bundle, [CARD])
        assert verdict.exit_code == REFUSED and verdict.checks[0].status == "refused"
    (root / CARD).chmod(0o644)
    (root / "docs").chmod(0o2775)  # of a folder it says whose group new files have
    assert verify_bundle(root).findings == verify_bundle(packed(root, tmp_path / "c.zip")).findings == []


def test_a_program_is_found_and_chmod_or_allow_settles_it(root: Path, tmp_path: Path) -> None:
    (root / CARD).chmod(0o755)
    for bundle in (root, packed(root, tmp_path / "b.zip")):
        (found,) = verify_bundle(bundle).findings
        assert (found.file, found.name) == (CARD, CARD) and "chmod a-x" in found.reason
        assert verify_bundle(bundle, [CARD]).findings == []
    with zipfile.ZipFile(pack_bundle(root, tmp_path / "p.zip", allow=[CARD]).file) as archive:
        assert {member.external_attr >> 16 & 0o7777 for member in archive.infolist()} == {0o644}
    assert verify_bundle(tmp_path / "p.zip").findings == []
    (root / CARD).chmod(0o644)
    assert verify_bundle(root).findings == []


def test_where_every_file_is_said_to_be_a_program_none_is(root: Path, tmp_path: Path) -> None:
    """As a shared drive shows them, and what is packed there."""
    for path in root.rglob("*"):
        path.chmod(0o777)
    assert verify_bundle(root).findings == verify_bundle(packed(root, tmp_path / "b.zip")).findings == []


@pytest.mark.realdata
def test_the_program_of_the_field_is_found_by_its_bit_and_its_first_line() -> None:
    root = Path(os.environ["SEGPIPE_DATA"], "field/bundles/bundle_runs_program")
    reasons = [each.reason for each in verify_bundle(root).findings if each.file == "docs/tool.md"]
    assert len(reasons) == 2 and "said to be a program" in reasons[0] and "under the name" in reasons[1]
