"""The page stands alone: everything inside, nothing fetched, everything escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from segpipe.reporting.html import Picture, Section, Table, render_page, write_page

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


def page() -> str:
    return render_page(
        "A <demo>",
        [
            Section(
                "Result & figures",
                paragraphs=["Dice < 1"],
                figures=[("0.91", "mean Dice")],
                tables=[Table(["case", "Dice"], [["demo_001", 0.91234], ["demo_002", None]], "Test cases")],
                pictures=[Picture(PNG, "three slices", "demo_001")],
                commands=["segpipe check manifest.json"],
            )
        ],
        lead="In short.",
    )


class Collector(HTMLParser):
    """Tags with their attributes, and that what is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_nothing_is_fetched() -> None:
    collector = Collector()
    collector.feed(page())
    assert not collector.open
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in collector.tags}
    for _, attributes in collector.tags:
        assert "href" not in attributes
        assert (attributes.get("src") or "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?://", page())


def test_content_is_escaped_and_formatted() -> None:
    text = page()
    assert "A &lt;demo&gt;" in text and "Result &amp; figures" in text and "Dice &lt; 1" in text
    assert "0.912" in text and "–" in text
    assert "segpipe check manifest.json" in text


def test_it_says_what_it_is_not() -> None:
    assert "Not a medical device." in page()
    assert "Not a medical device." in render_page("empty", [])


def test_pictures_have_words_for_those_who_do_not_see_them() -> None:
    collector = Collector()
    collector.feed(page())
    assert [attributes["alt"] for tag, attributes in collector.tags if tag == "img"] == ["three slices"]


def test_written_whole(tmp_path) -> None:
    write_page(tmp_path / "index.html", "t", [])
    assert (tmp_path / "index.html").read_text().startswith("<!DOCTYPE html>")
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
