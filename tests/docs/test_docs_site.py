"""The site is built strictly, refers to nothing outside itself, and its links hold."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from docs.pages import ROOT

MKDOCS = ROOT / ".venv-docs/bin/mkdocs"
NOT_MADE = "the site's environment is not made (make docs)"
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Page(HTMLParser):
    """The anchors of a page, what it links to and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in LOADED and LOADED[tag] in found and found.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(found[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not MKDOCS.is_file():
        pytest.skip(NOT_MADE)
    out = tmp_path_factory.mktemp("site") / "site"
    command = [str(MKDOCS), "build", "--strict", "--site-dir", str(out)]
    if os.geteuid() == 0 and shutil.which("unshare") and not subprocess.call(["unshare", "-n", "true"]):
        command = ["unshare", "-n", *command]  # no network
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path.resolve(): Page(path) for path in site.rglob("*.html")}


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    assert [address for page in pages.values() for address in page.loaded if "//" in address] == []
    styles = [path for path in site.rglob("*.css") if re.search(r"url\(['\"]?(https?:)?//", path.read_text())]
    assert styles == []


def test_links_and_pictures_hold(pages: dict[Path, Page]) -> None:
    dead = []
    for path, page in pages.items():
        if path.name == "404.html":
            continue
        for address in [*page.links, *page.loaded]:
            name, _, anchor = unquote(address).partition("#")
            if ":" in name or name.startswith("/"):
                continue
            target = (path.parent / name.partition("?")[0]).resolve() if name else path
            found = target.is_file() and (not anchor or target not in pages or anchor in pages[target].anchors)
            if not found and anchor not in ("__comments", "__search"):
                dead.append(f"{path.name}: {address}")
    assert dead == []


def test_every_public_name_has_its_place(site: Path) -> None:
    import segpipe

    anchors = Page(site / "reference/api.html").anchors
    names = [name for name in getattr(segpipe, "__all__", []) if name != "errors"]
    assert [name for name in names if not any(anchor.rpartition(".")[2] == name for anchor in anchors)] == []
