"""What a bundle needs for what is run of it: only that is asked for, in words, and a file of names admits it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from small_bundle import change_json, small_bundle

from segpipe.bundle.inspection import write_allow_file
from segpipe.bundle.open import open_bundle
from segpipe.bundle.verify import verify_bundle
from segpipe.bundle.vet.documents import write_sums
from segpipe.bundle.vet.gate import TrustPolicy, require_vetted, vet_opened
from segpipe.bundle.vet.grants import granted, read_grants
from segpipe.cli.app import run
from segpipe.errors import OK, REFUSED, USAGE, RefusedError
from segpipe.inference import ModelOptions
from zoo_bundles import NEEDED, glob_and_handlers, own_scripts, yaml_with_macros

SCHEMA = Path(__file__).parents[2] / "docs/schemas/bundle.schema.json"
TRAIN: dict[str, Any] = {
    "imports": ["$import torch.distributed as dist"],
    "start": "$dist.init_process_group('nccl')",
    "mapped": {"_target_": "Lambdad", "keys": "a", "func": "$lambda x: x + 1"},
    "saver": {"_target_": "CheckpointSaver", "save_dir": "$@bundle_root + '/models'", "save_dict": {"model": "@net"}},
}


def zoo(root: Path, make: Any = glob_and_handlers) -> Path:
    """A bundle in the manner of the model zoo, with configs for training, TensorRT and several GPUs beside its own."""
    make(root)
    (root / "configs/train.json").write_text(json.dumps(TRAIN))
    (root / "configs/inference_trt.yaml").write_text("trt: {_target_: scripts.trt.Compiled, path: /tmp/x}\n")
    (root / "configs/multi_gpu_train.json").write_text('{"a": 1, "a": 2}')
    (root / "configs/logging.conf").write_text("[handler_x]\nclass=FileHandler\n")
    (root / "models/model.ts").write_bytes(b"code")
    return root


def passes(root: Path, *allow: str) -> bool:
    """Whether `predict` lets it through, as its worker asks."""
    try:
        return bool(vet_opened(open_bundle(root).recipe(ModelOptions()).bundles, TrustPolicy(allow))["passed"])
    except RefusedError:
        return False


@pytest.mark.parametrize("make", NEEDED)
def test_predict_asks_for_what_it_runs_and_no_more(make: Any, tmp_path: Path) -> None:
    root = zoo(tmp_path / "zoo", make)
    assert passes(root, *NEEDED[make]) and not passes(root, *NEEDED[make][:-1])
    verdict = verify_bundle(root, NEEDED[make], purpose="predict")
    assert verdict.findings == [] and verdict.exit_code == OK and set(verdict.allowed) == set(NEEDED[make])
    files = {"train.json", "inference_trt.yaml", "multi_gpu_train.json", "logging.conf", "model.ts"}
    assert {Path(each.file).name for each in verdict.aside} == files
    whole = verify_bundle(root, NEEDED[make])
    assert whole.exit_code == REFUSED and not whole.of_predict and set(whole.aside) <= set(whole.findings)
    assert "--for predict" in whole.words
    with pytest.raises(RefusedError):  # train and evaluate may use any of its configs
        require_vetted(root, TrustPolicy(tuple(NEEDED[make])))


def test_an_attack_in_what_is_run_is_refused_for_every_purpose(tmp_path: Path) -> None:
    for file in ("configs/inference.json", "configs/metadata.json"):
        root = small_bundle(tmp_path / Path(file).stem)
        change_json(root / file, lambda document: document.update(evil="$open('x', 'w')"))
        write_sums(root)
        assert not passes(root)
        for purpose in ("predict", "all"):
            assert verify_bundle(root, purpose=purpose).exit_code == REFUSED
    root = small_bundle(tmp_path / "changed")
    (root / "configs/logging.conf").write_text("")  # not run, and not as SHA256SUMS says
    assert verify_bundle(root, purpose="predict").exit_code == REFUSED


def test_the_first_inference_config_is_what_predict_runs(tmp_path: Path) -> None:
    root = yaml_with_macros(tmp_path / "zoo")
    assert passes(root, "@checkpointloader")
    (root / "configs/inference.yml").write_text("x: $open('x')\n")
    assert passes(root, "@checkpointloader")
    (root / "configs/inference.yaml").rename(root / "configs/other.yaml")
    assert not passes(root, "@checkpointloader")


@pytest.mark.parametrize("make", [glob_and_handlers, own_scripts])
def test_the_file_that_inspect_writes_lets_predict_through(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, file = zoo(tmp_path / "zoo", make), tmp_path / "names"
    assert run(["bundle", "inspect", str(root), "--allow-file", str(file), "--json"]) == OK
    printed = json.loads(capsys.readouterr().out)
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(printed)
    assert printed["allow_file"]["refused"] == 0
    assert {each["run_by_predict"] for each in printed["code"]} == {True, False}
    assert set(read_grants(file)) == set(NEEDED[make]) == set(printed["allow_file"]["needed"])
    assert passes(root, *read_grants(file))
    verify = ["bundle", "verify", str(root), "--no-replay", "--json", "--allow-file"]
    assert run([*verify, str(file), "--for", "predict"]) == OK
    printed = json.loads(capsys.readouterr().out)
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(printed)
    assert printed["passes_for_predict"] and printed["purpose"] == "predict" and printed["not_run_by_predict"]
    assert run([*verify, str(file)]) == REFUSED
    text = file.read_text()
    assert "#lambda\n" in text and "may run unnamed functions of its configs" in text
    assert "CheckpointSaver the bundle may write to any folder" in text
    for unreadable in ("configs/multi_gpu_train.json", "configs/logging.conf"):  # which no name admits
        (root / unreadable).unlink()
    every = [line.removeprefix("#") for line in text.splitlines() if line and not line.startswith("# ")]
    (tmp_path / "every").write_text("\n".join(every))
    assert run([*verify, str(tmp_path / "every")]) == OK


def test_an_import_of_a_config_that_is_not_run_does_not_count(tmp_path: Path) -> None:
    root = glob_and_handlers(tmp_path / "zoo")
    (root / "configs/train.json").write_text(json.dumps({"imports": ["$import subprocess as glob"]}))
    assert passes(root, *NEEDED[glob_and_handlers])
    assert verify_bundle(root, [*NEEDED[glob_and_handlers], "subprocess"]).exit_code == REFUSED
    written = write_allow_file(root, tmp_path / "names")
    assert set(written.needed) == set(NEEDED[glob_and_handlers]) and written.more == ("subprocess",)


def test_a_file_of_names_is_written_once_and_read_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, file = glob_and_handlers(tmp_path / "zoo"), tmp_path / "names"
    command = ["bundle", "inspect", str(root), "--allow-file", str(file)]
    assert run(command) == OK and run(command) == USAGE
    assert "is there already" in capsys.readouterr().err
    verify = ["bundle", "verify", str(root), "--no-replay", "--allow-file"]
    assert run([*verify, str(tmp_path / "nowhere")]) == USAGE
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    assert run([*verify, str(tmp_path / "bytes")]) == USAGE
    assert "inspect BUNDLE --allow-file FILE" in capsys.readouterr().err
    (tmp_path / "typed").write_text(
        "\n".join(["# a comment", "", *(f"  {name}  " for name in NEEDED[glob_and_handlers])])
    )
    assert run([*verify, str(tmp_path / "typed")]) == OK


def test_a_name_that_would_be_two_lines_is_not_written(tmp_path: Path) -> None:
    root = small_bundle(tmp_path / "tiny", sums=False)
    targets = ["os\nsubprocess.run", "# nothing", " os.system ", "os.abort"]
    change_json(
        root / "configs/inference.json", lambda config: config.update(x=[{"_target_": each} for each in targets])
    )
    written = write_allow_file(root, tmp_path / "names")
    assert read_grants(tmp_path / "names") == written.needed == ("posix.abort",) and written.refused == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lambda", "the bundle may run unnamed functions of its configs"),
        (".clone", "call the method clone"),
        ("@loader", "call what its config makes under loader"),
        ("scripts/net.py", "run its own file scripts/net.py"),
        ("glob", "use the module glob"),
        ("torch.distributed", "use the module torch.distributed"),
        ("glob.glob", "call glob.glob, with any arguments"),
        ("setattr", "change what this process does"),
        ("monai_version", "older or newer"),
        ("CheckpointSaver.save_dir", "write to any folder"),
        ("CheckpointLoader.load_path", "read any file"),
        ("SaveImaged.output_postfix", "in another folder"),
        ("SupervisedEvaluator.compile_kwargs", "code or settings that nobody checked"),
        ("UNet.unheard_of", "be given what nobody checked"),
        ("output_dir", "write to any folder"),
        ("compile", "be given what nobody checked"),
    ],
)
def test_what_a_name_grants_is_said_in_words(name: str, words: str) -> None:
    import torch.distributed  # noqa: F401

    assert words in granted(name)


def test_the_hint_of_predict_can_be_followed(tmp_path: Path) -> None:
    root = glob_and_handlers(tmp_path / "zoo")
    with pytest.raises(RefusedError) as refused:
        vet_opened(open_bundle(root).recipe(ModelOptions()).bundles, TrustPolicy())
    assert "`segpipe bundle inspect BUNDLE --allow-file FILE`" in (refused.value.hint or "")
    assert run(["bundle", "inspect", str(root), "--allow-file", str(tmp_path / "names")]) == OK
    assert passes(root, *read_grants(tmp_path / "names"))


@pytest.mark.parametrize(
    "command", [["train", "m.json"], ["evaluate", "m.json", "p", "--out", "o"], ["predict", "b", "i", "o"]]
)
def test_the_commands_read_a_file_of_names(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--allow-file", "nowhere"]) == USAGE
    assert "the file of --allow-file cannot be read" in capsys.readouterr().err
