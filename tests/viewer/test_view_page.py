"""The page: whole without a network, careful with what it is given, and readable."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny_results import Tiny, write_results

from segpipe.viewer import ViewedCase, find_viewed, has_niivue, page, viewer_insert, write_viewer_page

FOLDER = Path(page.__file__).parent
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return write_results(tmp_path_factory.mktemp("page"))


@pytest.fixture
def niivue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for NiiVue, which a checkout need not hold."""
    (tmp_path / "niivue-0.js").write_text('const niivue = "</script>";')
    monkeypatch.setattr(page, "NIIVUE_FOLDER", tmp_path)


@pytest.mark.usefixtures("niivue")
def test_a_page_that_stands_alone_holds_all_it_needs(tiny: Tiny, tmp_path: Path) -> None:
    write_viewer_page(tmp_path / "page.html", "One <case>", find_viewed(tiny.out))
    text = (tmp_path / "page.html").read_text()
    assert "One &lt;case&gt;" in text and str(tiny.out.parent) not in text
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]  # type: ignore[index]
    for script in scripts:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert len(scripts) == 3 and "default-src 'none'" in policy and "unsafe-eval" not in policy
    assert not re.search(r"(src|href)=[\"']?(?!data:)", re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))
    document = json.loads(re.search(r'id="v-data">(.*?)</script>', text)[1])  # type: ignore[index]
    assert document["inline"] and document["cases"][0]["id"] == "case_1"
    packed = re.search(r'id="v-0-1">(.*?)</script>', text)[1]  # type: ignore[index]
    labels = nib.Nifti1Image.from_stream(io.BytesIO(gzip.decompress(base64.b64decode(packed))))
    own = nib.load(tiny.out / "case_1" / "segmentation.nii.gz")
    np.testing.assert_array_equal(np.asarray(labels.dataobj), np.asarray(own.dataobj))


@pytest.mark.usefixtures("niivue")
def test_names_cannot_become_markup(tiny: Tiny) -> None:
    (case,) = find_viewed(tiny.out)
    odd = ViewedCase("case_1", case.images, case.layers, remarks=("</script><b>", "<!--"))
    body = viewer_insert([odd]).body
    assert "</script><b>" not in body and "<!--" not in body
    assert json.loads(re.search(r'id="v-data">(.*?)</script>', body)[1])["cases"][0]["notes"][0] == "</script><b>"  # type: ignore[index]


@pytest.mark.usefixtures("niivue")
def test_a_case_too_large_for_the_page_is_a_picture(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST_CASE_BYTES", 1000)
    body = viewer_insert(find_viewed(tiny.out), "Look at it elsewhere.").body
    (case,) = json.loads(re.search(r'id="v-data">(.*?)</script>', body)[1])["cases"]  # type: ignore[index]
    assert case["pictures_only"].startswith("too large for a page that stands alone") and "elsewhere" in body
    assert case["picture"].startswith("data:image/png") and 'id="v-0-0"' not in body


def test_without_niivue_the_page_says_so(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "NIIVUE_FOLDER", tmp_path)
    assert not has_niivue()
    insert = viewer_insert(find_viewed(tiny.out))
    assert "no NiiVue" in insert.body and insert.scripts == ()
    served = page.served_page("r", ["case_1"])
    assert "niivue.js" not in served and "no NiiVue" in served


def test_our_own_files_ask_for_nothing() -> None:
    for path in (FOLDER / "assets").iterdir():
        assert not re.search(r"https?://|//[a-z]+\.[a-z]+/|@import|eval\(|innerHTML", path.read_text()), path


def test_the_pinned_version_is_that_of_the_licences() -> None:
    version = re.search(r"^NIIVUE := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]  # type: ignore[index]
    licences = (FOLDER / "niivue" / "LICENSES.txt").read_text()
    assert f"niivue-{version}.js" in licences and "BSD 2-Clause License" in licences
    if (script := page.niivue_script()) is not None:
        assert script.name == f"niivue-{version}.js"


def luminance(colour: str) -> float:
    """Relative luminance of sRGB, as WCAG 2.2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(
    ("front", "back", "least"),
    [
        ("ink", "page", 7.0),
        ("ink", "wash", 7.0),
        ("soft", "page", 4.5),
        ("soft", "wash", 4.5),
        ("on-mark", "mark", 4.5),
        ("warn", "warn-wash", 4.5),
        ("mark", "page", 3.0),  # the ring of what has the focus
        ("line", "page", 3.0),  # edges of boxes that can be filled in
        ("line", "wash", 3.0),
    ],
)
def test_colours_keep_their_contrast(dark: bool, front: str, back: str, least: float) -> None:
    style = (FOLDER / "assets" / "viewer.css").read_text()
    light, _, night = style.partition("@media (prefers-color-scheme: dark)")
    colours = dict(re.findall(r"--v-([a-z-]+): (#[0-9a-f]{6})", night if dark else light))
    brighter, darker = sorted((luminance(colours[front]), luminance(colours[back])), reverse=True)
    assert (brighter + 0.05) / (darker + 0.05) >= least


def test_every_colour_stands_in_both_sets() -> None:
    style = (FOLDER / "assets" / "viewer.css").read_text()
    names = re.findall(r"--v-([a-z-]+): #", style)
    assert sorted(names) == sorted([*set(names), *set(names)])
    loose = re.sub(r"\.v-(stage|letters|ramp)[^}]*}", "", re.sub(r"--v-[a-z-]+: #[0-9a-f]{6}", "", style))
    assert not re.search(r"#[0-9a-f]{3,6}", loose)
