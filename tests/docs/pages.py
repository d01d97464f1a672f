"""The pages as tests read them: fenced blocks with their marks, commands in them, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
OPENING = re.compile(r"^(?P<indent> *)```(?P<language>\w+)?(?P<rest>.*)$")
MARK = re.compile(r"^\s*<!-- (?P<mark>run|tested|example)(?:(?:, with|:) (?P<more>.+))? -->$")
LEADING = {"nice", "flock", "--nonblock", "exec", "env"}


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: from the root.
        line: of its opening, from 1.
        language: after the fence.
        mark: "run", "tested", "example" or "", from the comment in front of it.
        more: a verb with the options that shorten it, the test that runs the same, or why it is not run.
        text: without the fences and their indent.
    """

    page: str
    line: int
    language: str
    mark: str
    more: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(language: str) -> list[Block]:
    """Return the blocks of a language, of all pages."""
    return [block for page in PAGES for block in _blocks(page) if block.language == language]


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each `segpipe` command of a shell text, without what leads to it and where its output goes."""
    text = re.sub(r"(^|\s)#.*", r"\1", text.replace("\\\n", " "))
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|()<>\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    words: list[str] = []
    skip = False
    for word in [*lexer, "\n"]:
        if set(word) <= set(";&|()\n"):
            yield from _segpipe(words)
            words, skip = [], False
        elif skip or set(word) <= set("<>"):
            skip = not skip
        else:
            words.append(word)


def _segpipe(words: list[str]) -> Iterator[list[str]]:
    while words and (words[0] in LEADING or re.fullmatch(r"\w+=.*", words[0])):
        words = words[1:]
    if words and words[0] == "segpipe":
        yield words[1:]


def _blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opening = OPENING.match(lines[number])
        if opening:
            start, indent = number, opening["indent"]
            number += 1
            while lines[number].strip() != "```":
                number += 1
            found = MARK.match(lines[start - 1]) if start else None
            mark, more = (found["mark"], found["more"] or "") if found else ("", "")
            text = "\n".join(line.removeprefix(indent) for line in lines[start + 1 : number])
            yield Block(str(page.relative_to(ROOT)), start + 1, opening["language"] or "", mark, more, text)
        number += 1
