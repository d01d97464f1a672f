"""Every command on the pages exists: its verb, its options, the number of its arguments; links lead somewhere."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from docs.pages import PAGES, ROOT, Block, blocks, commands
from segpipe import errors
from segpipe.cli.app import VERBS, app

INLINE = re.compile(r"`segpipe ((?:[a-z]+)(?: [^`]*)?)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
LANGUAGES = {"sh", "python", "text", "json", "yaml", "ini"}
OF_OTHERS = [
    "--help",
    "--shm-size",
    "--extra-index-url",
    "--config_file",
    "--dataset_dir",
    "--filepath",
    "--hash_val",
    "--use_trace",
    "--input_shape",
    "--converter_kwargs",
]
ROOT_COMMAND: Any = typer.main.get_command(app)


def problem(words: list[str]) -> str | None:
    """What is wrong with a command, or None."""
    if words[0] in ("--version", "--help"):
        return None
    command, rest = ROOT_COMMAND, [word for word in words if word != "OPTIONS"]
    while hasattr(command, "commands"):
        if not rest or rest[0] not in command.commands:
            return f"no such command: {' '.join(words)}"
        command, rest = command.commands[rest[0]], rest[1:]
    context = command.context_class(command)
    try:
        found, extra, _ = command.make_parser(context).parse_args(list(rest))
    except typer.BadParameter.__mro__[2] as error:
        return f"{' '.join(words)}: {error}"
    missing = [
        param.name
        for param in command.params
        if param.required and not found.get(param.name) and not {"--help"} & set(rest)
    ]
    return f"{' '.join(words)}: missing {missing}, too many {extra}" if missing or extra else None


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_commands_exist(block: Block) -> None:
    assert [text for words in commands(block.text) if (text := problem(words))] == []


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_commands_run_in_a_test_or_are_called_an_example(block: Block) -> None:
    assert block.mark, "mark it as run, as tested with the test that runs the same, or as an example with the reason"
    assert block.mark == "run" or block.more
    assert block.mark != "tested" or (ROOT / block.more).is_file()


def test_the_tutorial_is_the_demo() -> None:
    from segpipe.cli.demo.demo_steps import COMMANDS

    made = [words for line in COMMANDS.splitlines() for words in commands(line.replace("OUT/", "demo_out/"))]
    for block in blocks("sh"):
        if block.page.endswith("tutorial.md") and block.mark == "tested":
            for words in commands(block.text):
                verb = words[:2] if words[0] == "bundle" else words[:1]
                assert verb == ["bundle", "verify"] or any(set(words[:3]) <= set(step) for step in made), words


def test_options_in_the_running_text_exist() -> None:
    wrong = []
    for page in PAGES:
        for text in INLINE.findall(page.read_text()):
            for part in text.split(" -- "):  # submit -- train ...: each has options of its own
                command, words = ROOT_COMMAND, part.split()
                while hasattr(command, "commands") and words and words[0] in command.commands:
                    command, words = command.commands[words[0]], words[1:]
                known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help"}
                if command is ROOT_COMMAND and part.split()[0] not in VERBS:
                    wrong.append(f"{page.name}: segpipe {part}")
                found = re.findall(r"--[a-z-]+", part)
                wrong += [f"{page.name}: segpipe {part}: {word}" for word in found if word not in known]
    assert wrong == []


def test_options_that_stand_alone_are_those_of_some_command() -> None:
    known, groups = set(OF_OTHERS), [ROOT_COMMAND]
    while groups:
        command = groups.pop()
        known |= {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
        groups += getattr(command, "commands", {}).values()
    quoted = {(page.name, text) for page in PAGES for text in re.findall(r"`(--[^`]*)`", page.read_text())}
    named = {(page, word) for page, text in quoted for word in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)}
    assert {(page, word) for page, word in named if word not in known} == set()


def test_every_block_names_its_language() -> None:
    found = {language: blocks(language) for language in ("", *LANGUAGES)}
    assert [str(block) for block in found[""]] == []
    fences = sum(len(re.findall(r"^ *```\w", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert fences == sum(map(len, found.values()))


def test_links_between_pages_lead_somewhere() -> None:
    dead = []
    for page in PAGES:
        for target in LINK.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
            path = target.partition("#")[0]
            if path and ":" not in path and not (page.parent / path).exists():
                dead.append(f"{page.relative_to(ROOT)}: {target}")
    assert dead == []


def test_paths_on_the_pages_are_there() -> None:
    pattern = re.compile(r"`((?:pipeline|tests|configs|bench|data_manifests|bundles)/[^`\s]+|\.ci/\w+)`")
    named = {(page.name, path) for page in PAGES for path in pattern.findall(page.read_text())}
    assert len(named) > 20
    gone = {(page, path) for page, path in named if not (ROOT / path).exists() and "WORD" not in path}
    assert gone - {("CHANGELOG.md", path) for _, path in gone} == set()


def test_pictures_are_small() -> None:
    large = [
        path.relative_to(ROOT)
        for path in (ROOT / "docs").rglob("*.png")
        if "results" not in path.parts and path.stat().st_size > 150_000
    ]
    assert large == []


def test_a_page_that_lists_exit_codes_has_those_of_its_command() -> None:
    codes = {"SOME_FAILED": 4, "SOME_HELD": 6, "REFUSED": 5}
    assert all(getattr(errors, name) == code for name, code in codes.items())
    lacking, listed = [], 0
    for verb in VERBS:
        _, _, section = (ROOT / f"docs/reference/commands/{verb}.md").read_text().partition("\n## Exit codes\n")
        source = (ROOT / f"pipeline/segpipe/cli/{verb}_.py").read_text()
        listed += bool(section)
        own = [code for name, code in codes.items() if section and re.search(rf"return .*\b{name}\b", source)]
        lacking += [f"{verb}: {code}" for code in own if not re.search(rf"(^|; ){code} ", section, re.MULTILINE)]
    assert listed >= 3 and lacking == []


def test_what_is_said_of_the_shipped_bundles_precision_is_so() -> None:
    page = (ROOT / "docs/reference/commands/predict.md").read_text()
    metadata = [json.loads(path.read_text()) for path in ROOT.glob("bundles/*/configs/metadata.json")]
    assert "The shipped bundles have a proof for OpenVINO\nwithout" in page
    assert len(metadata) == 2 and all(each["precision"] for each in metadata)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 6, 130])
def test_the_script_for_every_night_hides_no_exit_code(code: int, tmp_path: Path) -> None:
    pacs = [block for block in blocks("sh") if block.page == "docs/howto/dicom_pacs.md"]
    (script,) = [block.text for block in pacs if block.text.startswith("#!/bin/sh")]
    stub = tmp_path / ".venv/bin/segpipe"
    stub.parent.mkdir(parents=True)
    stub.write_text(f'#!/bin/sh\n[ "$1" = send ] || exit {code}\n')
    stub.chmod(0o755)
    words = ["sh", "-c", script.replace("/srv/segpipe", str(tmp_path))]
    as_cron_does = {"PATH": "/usr/bin:/bin"}
    assert subprocess.run(words, env=as_cron_does, check=False).returncode == code


def test_crontabs_name_programs_where_they_are() -> None:
    lines = [
        line for block in blocks("text") for line in block.text.splitlines() if re.match(r"[\d*]+( [\d*]+){4} ", line)
    ]
    assert lines
    for line in lines:
        words = line.split()[5:]
        rest = [word for word in words if word not in ("flock", "--nonblock", "nice")]
        assert all(word.startswith("/") for word in rest[:2]), line
