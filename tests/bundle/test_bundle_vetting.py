"""Names, expressions and foreign bundles: what is admitted and by which name, against MONAI's own reading."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from small_bundle import LOGGING, change_json, small_bundle

from segpipe.bundle import Bundle
from segpipe.bundle.verify import Verification, verify_bundle
from segpipe.bundle.vet.arguments import ONE_OF
from segpipe.bundle.vet.bundle_files import Finding
from segpipe.bundle.vet.configs import vet_config, vet_expression
from segpipe.bundle.vet.names import ALLOWED, Names, _listed
from segpipe.bundle.vet.syntax import as_evaluated
from segpipe.cli.app import run
from tiny_bundle import write_bundle

ROOT = Path(__file__).parents[2]


def test_every_listed_name_is_there_and_a_class_or_function() -> None:
    listed = set(_listed().values())
    for module, names in ALLOWED.items():
        for name in names.split():
            found = Names().target(f"{module}.{name}")
            assert found.admitted and (f"{module}.{name}" in listed or found.name in listed), f"{module}.{name}"


def test_our_own_configs_name_only_what_is_listed() -> None:
    for path in (ROOT / "configs").rglob("*.yaml"):
        uses = list(vet_config(yaml.safe_load(path.read_text()), path.name, Names()))
        assert [use for use in uses if use.findings] == []


@pytest.mark.parametrize(
    ("written", "defined"),
    [
        ("torch.os.system", "posix.system"),
        ("monai.utils.misc.subprocess.run", "subprocess.run"),
        ("run_cmd", "monai.utils.misc.run_cmd"),
        ("eval", "eval"),
        ("builtins.exec", "exec"),
        ("open", "io.open"),
        ("torch", "torch"),
        ("scripts.net.Net", "scripts.net.Net"),
    ],
)
def test_a_name_is_refused_for_what_it_leads_to_and_allowed_by_either(written: str, defined: str) -> None:
    found = Names().target(written)
    assert (found.admitted, found.name) == (False, defined)
    assert Names([defined]).target(written).admitted and Names([written]).target(written).admitted
    assert not Names([defined + "x", written[:-1], "monai", "posix"]).target(written).admitted


@pytest.mark.parametrize("written", ["UNet", "Unet", "monai.networks.nets.UNet", "monai.networks.nets.unet.UNet"])
def test_all_ways_to_a_listed_class_are_one(written: str) -> None:
    assert Names().target(written).name == "monai.networks.nets.UNet"


ADMITTED = [
    "$[{'image': p} for p in sorted(@files)]",
    "$@bundle_root + '/models/model.pt'",
    "$@evaluator.run()",
    "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "$@network_def.to(@device)",
    "$monai.utils.set_determinism(seed=@seed)",
    "$len(@labels) - 1",
    "$@a#b#0[1:2]",
    "$not @a and -@b < 3.5e-1",
    "$monai.handlers.from_engine(['pred', 'label'])",
    "$@net.parameters()",
    "$torch.float32",
    "$np.pi * 2",
    "$[x for row in @rows for x in row if x != 1]",
    "${str(k): v for k, v in zip(@a, @b)}",
    '$f"{@a}_{1}"',
    "$@##a + @#b",
    "$'%s.nii' % @name",
    "$@x.shape[0]",
    "$[*@a, *@b]",
]


@pytest.mark.parametrize("text", ADMITTED)
def test_what_configs_usually_say_is_admitted(text: str) -> None:
    assert vet_expression(text, ("train", "x", "y"), Names())[1] == []


REFUSED = [
    "$exec('x')",
    "$compile('x', '', 'eval')",
    "$getattr(torch, 'os')",
    "$vars()",
    "$globals()",
    "$type('X', (), {})",
    "$@a.__dict__",
    "$torch.__builtins__",
    "$@a.format(1)",
    "$@a.b",
    "$@a()",
    "$@a.b.run()",
    "$(yield)",
    "$await @a",
    "$torch",
    "$torch.os",
    "$unknown(1)",
    "$glob.glob('*')",
    "$1 << 99",
    "$2 ** 8",
    "$x = 1",
    "$",
    "$ 1",
    "$1\n2",
    "$[torch for torch in [1]]",
    "$[x.a for x.a in @b]",
    "$__local_refs",
    "$@a or __local_refs",
    "$print(*@a, **@b)",
    "$torch.load(@p)",
    "$torch.hub.load('a', 'b')",
    "$monai.bundle.run()",
    "$[len for len in @a]",
    "$'é'",
    "$import os",
    "$import os, sys",
    "$from . import x",
    "$import os\nimport sys",
    "$import os as torch",
    "$__import__('os')",
    "$@a.run.__call__()",
    "$map(@a, @b)",
    "$f'{@a.b}'",
    "$(lambda x: x)(1)",
]


@pytest.mark.parametrize("text", REFUSED)
def test_the_rest_is_refused(text: str) -> None:
    assert vet_expression(text, ("x",), Names())[1] != []


TEXT = st.lists(
    st.sampled_from(["@", "#", "##", "::", "a", "b", "f", "or", "'", '"', "{", "}", "1", " + ", "[", "]", "%", "."]),
    max_size=14,
).map("".join)


@given(TEXT, st.lists(st.sampled_from(["a", "b", "0"]), min_size=3, max_size=4))
@settings(deadline=None, max_examples=150)
def test_the_text_that_is_vetted_is_the_text_that_monai_evaluates(text: str, path: list[str]) -> None:
    from monai.bundle import ConfigParser
    from monai.bundle.reference_resolver import ReferenceResolver

    class All(dict[str, Any]):
        """Every id is known."""

        def __contains__(self, _key: object) -> bool:
            return True

    try:
        absolute = ConfigParser.resolve_relative_ids("::".join(path), f"${text}")
    except ValueError:  # more levels up than there are
        return
    assert ReferenceResolver.update_refs_pattern(absolute, All())[1:] == as_evaluated(f"${text}", path)


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=150)
def test_any_text_gets_a_verdict(text: str) -> None:
    vet_expression(f"${text}", ("x",), Names(["lambda"]))
    list(vet_config({"a": {"_target_": text, text: f"%{text}"}}, "x.json", Names()))


# Three bundles in the manner of the model zoo ------------------------------------------------------------------


def _zoo(root: Path, change: dict[str, Any]) -> Path:
    """Without SHA256SUMS, with metadata that the specification asks for and no more, older versions, and imports."""
    write_bundle(root)
    change_json(
        root / "configs/metadata.json",
        lambda metadata: metadata.update(
            monai_version="1.4.0",
            pytorch_version="2.5.1",
            numpy_version="1.26.4",
            required_packages_version={"itk": "5.4.0"},
        ),
    )
    change_json(root / "configs/inference.json", lambda config: config.update(change))
    (root / "configs/logging.conf").write_text(LOGGING)
    return root


def glob_listing(root: Path) -> Path:
    return _zoo(
        root,
        {
            "imports": ["$import glob", "$import os"],
            "datalist": "$list(sorted(glob.glob(os.path.join(@dataset_dir, '*.nii.gz'))))",
            "dataset": {
                "_target_": "Dataset",
                "data": "$[{'image': i} for i in @datalist]",
                "transform": "@preprocessing",
            },
        },
    )


def setattr_and_handlers(root: Path) -> Path:
    return _zoo(
        root,
        {
            "handlers": [
                {
                    "_target_": "CheckpointLoader",
                    "load_path": "$@bundle_root + '/models/model.pt'",
                    "load_dict": {"model": "@network"},
                },
                {"_target_": "StatsHandler", "iteration_log": False},
                {"_target_": "monai.handlers.GarbageCollector"},
            ],
            "mapped": {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: torch.where(x > 1, 1, x)"},
            "run": ["$setattr(torch.backends.cudnn, 'benchmark', True)", "$@evaluator.run()"],
            "same": "%handlers#1",
        },
    )


def own_scripts(root: Path) -> Path:
    (root / "scripts").mkdir(parents=True)
    (root / "scripts/__init__.py").write_text("")
    (root / "scripts/net.py").write_text("raise SystemExit('nobody may import this')\n")
    return _zoo(
        root,
        {
            "imports": ["$from scripts.net import listing"],
            "network_def": {"_target_": "scripts.net.Net", "channels": 4},
            "datalist": "$listing(@dataset_dir)",
        },
    )


FOREIGN = {
    glob_listing: {"glob", "os", "glob.glob", "posixpath.join"},
    setattr_and_handlers: {
        "setattr",
        "torch.backends.cudnn",
        "lambda",
        "monai.transforms.utility.dictionary.Lambdad",
        "monai.handlers.garbage_collector.GarbageCollector",
    },
    own_scripts: {"scripts/__init__.py", "scripts/net.py", "scripts.net.listing", "scripts.net.Net"},
}


def names_of(verdict: Verification) -> set[str | None]:
    return {finding.name for finding in verdict.findings}


@pytest.mark.parametrize("make", FOREIGN)
def test_a_foreign_bundle_is_vetted_with_reasons_and_passes_when_its_names_are_allowed(
    make: Any, tmp_path: Path
) -> None:
    root = make(tmp_path / "zoo")
    verdict = verify_bundle(root)
    assert verdict.exit_code == 5 and names_of(verdict) == FOREIGN[make]
    assert all(each.reason and (each.place or each.file.endswith(".py")) for each in verdict.findings)
    allowed = verify_bundle(root, FOREIGN[make])
    assert allowed.findings == [] and allowed.exit_code == 0 and set(allowed.allowed) == FOREIGN[make]
    assert allowed.intact is None and "not trusted" in allowed.words
    for one in FOREIGN[make]:
        assert names_of(verify_bundle(root, FOREIGN[make] - {one})) == {one}


def test_an_import_under_the_name_of_another_is_no_way_in(tmp_path: Path) -> None:
    root = _zoo(tmp_path / "zoo", {"imports": ["$import subprocess as glob"], "datalist": "$glob.run('x')"})
    assert names_of(verify_bundle(root, ["glob", "glob.glob", "glob.run"])) == {"subprocess", "subprocess.run"}
    (root / "configs/other.json").write_text(json.dumps({"imports": ["$import glob"]}))
    assert None not in names_of(verify_bundle(root, ["glob", "subprocess"]))
    assert verify_bundle(root, ["glob", "subprocess", "subprocess.run"]).exit_code == 5


def test_arguments_that_name_code_are_a_closed_list() -> None:
    assert {"reader", "writer", "weights_only"} <= set(ONE_OF)
    allowed = {"_target_": "LoadImaged", "keys": "image", "reader": ["ITKReader", "scripts.Reader"]}
    (use,) = (use for use in vet_config({"a": allowed}, "x.json", Names()) if use.findings)
    assert use.place == "a::reader" and use.kind == "argument"
    assert not [use for use in vet_config({"a": allowed}, "x.json", Names(["scripts.Reader"])) if use.findings]


# The command ---------------------------------------------------------------------------------------------------


def document(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any]:
    code = run([*map(str, words), "--json"])
    printed = json.loads(capsys.readouterr().out)
    Draft202012Validator(json.loads((ROOT / "docs/schemas/bundle.schema.json").read_text())).validate(printed)
    return code, printed


def test_the_shipped_bundles_pass(capsys: pytest.CaptureFixture[str]) -> None:
    for root in sorted((ROOT / "bundles").iterdir()):
        code, printed = document(capsys, "bundle", "verify", root, "--no-replay")
        assert (code, printed["findings"], printed["intact"]) == (0, [], True)
        code, printed = document(capsys, "bundle", "inspect", root)
        assert code == 0 and all(each["admitted"] for each in printed["code"])


def test_what_export_writes_passes(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = document(capsys, "bundle", "verify", bundle.root, "--no-replay")
    assert (code, printed["findings"], printed["bundle"]["sha256"]) == (0, [], bundle.sha256)


def test_what_verify_and_inspect_print(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = glob_listing(tmp_path / "zoo")
    code, printed = document(capsys, "bundle", "verify", root, "--allow", "glob")
    assert code == 5 and printed["allowed"] == ["glob"] and printed["verdict"] == "refused"
    assert run(["bundle", "verify", str(root), "--allow", "nothing"]) == 5
    shown = capsys.readouterr()
    assert "imports::0" in shown.out and "REFUSED" in shown.out and "--allow nothing" in shown.err
    code, printed = document(capsys, "bundle", "inspect", root)
    assert code == 0 and printed["labels"] == {"0": "background", "1": "bright"}
    assert {each["kind"] for each in printed["code"]} == {"target", "expression", "import"}
    assert {each["state"] for each in printed["requirements"]} == {"newer here", "not installed"}
    assert run(["bundle", "inspect", str(root)]) == 0
    assert re.search(r"\d+ of \d+ places are admitted", capsys.readouterr().out)


def test_a_terminal_is_not_written_to_by_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = small_bundle(tmp_path / "tiny", sums=False)
    change_json(root / "configs/metadata.json", lambda metadata: metadata.update(name="\x1b[2J\u202ename"))
    (root / "docs/README.md").write_text("\x1b]0;title\x07 card")
    for action in ("inspect", "verify"):
        assert run(["bundle", action, str(root)]) == 0
        assert not {"\x1b", "\x07", "\u202e"} & set(capsys.readouterr().out)


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_text("x"), lambda path: None])
def test_what_is_no_bundle(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "thing")
    assert run(["bundle", "verify", str(tmp_path / "thing")]) == 2


def test_inspect_does_not_look_into_an_unsafe_archive(tmp_path: Path) -> None:
    root = small_bundle(tmp_path / "tiny")
    (root / "link").symlink_to("/etc")
    assert run(["bundle", "inspect", str(root)]) == 5


def test_a_finding_is_plain_values() -> None:
    assert set(Finding("a", "b", "c", "d").as_dict()) == {"file", "place", "text", "reason", "name"}
