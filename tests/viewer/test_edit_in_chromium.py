"""Correcting in Debian's Chromium: what is drawn on the screen is what is saved, to the voxel."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from chromium import NO_CHROMIUM, PROGRAM, Browser
from test_in_chromium import NO_NIIVUE, SMALL, go_to, is_turned, opacity, opened, place, tiles
from tiny_results import LEFT, RIGHT, SHAPE, SPACING_MM, Tiny, write_results

from segpipe.reporting import colour_of
from segpipe.viewer import Editor, ViewServer, find_viewed, has_niivue

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason=NO_CHROMIUM),
    pytest.mark.skipif(not has_niivue(), reason=NO_NIIVUE),
]
ACROSS = {0: 2, 1: 1, 2: 0}  # axis through the slices of the axial, coronal and sagittal plane
Voxel = tuple[int, int, int]


@pytest.fixture(scope="module", params=[("PSL", False), ("LIA", True)], ids=["PSL", "turned"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    codes, turned = request.param
    return write_results(tmp_path_factory.mktemp("edit"), codes, turned)


@pytest.fixture(scope="module")
def folder(tiny: Tiny) -> Path:
    return tiny.out.parent / "corrected"


@pytest.fixture(scope="module")
def server(tiny: Tiny, folder: Path) -> Iterator[ViewServer]:
    with ViewServer(find_viewed(tiny.out), "Edit", editor=Editor(folder, "reader-2")) as server:
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        yield server
        server.stop()
        thread.join()


@pytest.fixture(scope="module")
def browser(server: ViewServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium"), SMALL) as browser:
        opened(browser, server.url)
        opacity(browser, 1)
        browser.run("segpipeViewer.nv.setCrosshairWidth(0)")
        yield browser


def choose(browser: Browser, brush: int, radius: float = 0, flat: bool = True, draw: bool = True) -> None:
    browser.run(
        f"document.getElementById('v-brush').value = '{brush}'; document.getElementById('v-radius').value = {radius};"
        f"document.getElementById('v-flat').checked = {json.dumps(flat)};"
        f"document.getElementById('v-draw').checked = {json.dumps(draw)};"
    )


def drawn(browser: Browser, tiny: Tiny) -> np.ndarray:
    """The label map as the page has it, towards the patient's right, front and head."""
    browser.run("new Promise((done) => setTimeout(done))")
    content = browser.run("Array.from(segpipeViewer.state.volumes.at(-1).values)")
    image = nib.load(tiny.out / "case_1/segmentation.nii.gz")
    values = np.reshape(np.array(content, np.uint8), image.shape, order="F")
    return in_ras(nib.Nifti1Image(values, image.affine))


def differing(one: np.ndarray, other: np.ndarray) -> list[tuple[int, ...]]:
    return [(*map(int, voxel), int(one[tuple(voxel)])) for voxel in np.argwhere(one != other)]


def in_ras(image: Any) -> np.ndarray:
    return np.asarray(nib.as_closest_canonical(image).dataobj)


def save(browser: Browser) -> str:
    browser.run("document.getElementById('v-save').click()")
    browser.wait_for("document.getElementById('v-edit-state').textContent.startsWith('saved')")
    return browser.run("document.getElementById('v-edit-state').textContent")


def click(browser: Browser, tiny: Tiny, plane: int, voxel: Voxel) -> None:
    go_to(browser, voxel, is_turned(tiny))
    browser.click(*place(tiles(browser)[plane], plane, voxel))


@pytest.mark.parametrize("plane", [0, 1, 2])
def test_a_voxel_is_drawn_where_it_is_clicked_and_undone(tiny: Tiny, browser: Browser, plane: int) -> None:
    choose(browser, RIGHT)
    voxel = (20, 10 + plane, 24)
    click(browser, tiny, plane, voxel)
    expected = tiny.labels.copy()
    expected[voxel] = RIGHT
    assert differing(drawn(browser, tiny), expected) == []
    x, y = place(tiles(browser)[plane], plane, voxel)
    assert np.abs(browser.picture()[int(y), int(x)] - colour_of(RIGHT)).max() < 12
    browser.run("document.getElementById('v-undo').click()")
    assert differing(drawn(browser, tiny), tiny.labels) == []
    assert np.ptp(browser.picture()[int(y), int(x)]) < 12  # grey again


@pytest.mark.parametrize("plane", [0, 1, 2])
@pytest.mark.parametrize("flat", [True, False])
def test_a_brush_takes_the_voxels_within_its_radius(tiny: Tiny, browser: Browser, plane: int, flat: bool) -> None:
    choose(browser, LEFT, 4.6, flat)
    centre = (24, 24, 22)
    click(browser, tiny, plane, centre)
    far = (np.indices(SHAPE).reshape(3, -1).T - centre) * SPACING_MM
    near = np.linalg.norm(far, axis=1) <= 4.6
    if flat:
        near &= far[:, ACROSS[plane]] == 0
    expected = tiny.labels.copy()
    expected[near.reshape(SHAPE)] = LEFT
    assert differing(drawn(browser, tiny), expected) == []
    browser.run("document.getElementById('v-canvas').focus()")
    browser.key("z")
    assert differing(drawn(browser, tiny), tiny.labels) == []


def test_without_drawing_on_nothing_changes(tiny: Tiny, browser: Browser) -> None:
    choose(browser, RIGHT, 5, draw=False)
    click(browser, tiny, 0, (20, 20, 20))
    assert differing(drawn(browser, tiny), tiny.labels) == []


def test_a_drag_leaves_no_gap_and_the_eraser_takes_away(tiny: Tiny, browser: Browser) -> None:
    choose(browser, 0)
    start, end = (10, 22, 15), (10, 32, 15)  # inside the left mark
    go_to(browser, start, is_turned(tiny))
    tile = tiles(browser)[0]
    browser.drag(place(tile, 0, start), place(tile, 0, end))
    expected = tiny.labels.copy()
    expected[10, 22:33, 15] = 0
    assert differing(drawn(browser, tiny), expected) == []
    browser.run("document.getElementById('v-undo').click()")
    assert differing(drawn(browser, tiny), tiny.labels) == []


def test_what_is_saved_is_read_back_to_the_voxel_and_gone_on_with(
    tiny: Tiny, server: ViewServer, browser: Browser, folder: Path, tmp_path: Path
) -> None:
    choose(browser, RIGHT, 3)
    click(browser, tiny, 1, (30, 20, 24))
    on_screen = drawn(browser, tiny)  # first: the end of a stroke is a timer of the page
    assert browser.run("document.getElementById('v-edit-state').textContent") == "not saved"
    changed = int((on_screen != tiny.labels).sum())
    assert changed > 3
    assert save(browser) == f"saved as case_1.nii.gz: {changed} voxels differ from what it began with"
    image, start = nib.load(folder / "case_1.nii.gz"), nib.load(tiny.out / "case_1/segmentation.nii.gz")
    assert np.array_equal(in_ras(image), on_screen) and image.shape == start.shape
    assert np.allclose(image.affine, start.affine, atol=1e-4)
    line = json.loads((folder / "corrections.jsonl").read_text().splitlines()[-1])
    assert (line["id"], line["annotator"]) == ("case_1", "reader-2") and 0 <= line["minutes"] < 10
    browser.picture(tmp_path / "edit.png")
    with Browser(tmp_path / "again", SMALL) as again:
        opened(again, server.url)
        assert np.array_equal(drawn(again, tiny), on_screen)
    assert browser.complaints == []
    assert {address for address in browser.requests if not address.startswith(server.url)} == set()


def test_what_is_drawn_during_a_save_is_not_saved(tiny: Tiny, browser: Browser, folder: Path) -> None:
    choose(browser, LEFT)
    click(browser, tiny, 0, (22, 20, 24))
    drawn(browser, tiny)
    browser.run(
        "window.sent = window.fetch; window.fetch = (...words) => new Promise((go) => { window.release = go; })"
        ".then(() => window.sent(...words)); document.getElementById('v-save').click()"
    )
    browser.run("document.getElementById('v-undo').click()")
    click(browser, tiny, 0, (26, 20, 24))
    on_screen = drawn(browser, tiny)
    browser.run("window.release()")
    browser.wait_for("document.getElementById('v-edit-state').textContent.startsWith('saved')")
    browser.run("window.fetch = window.sent")
    assert browser.run("document.getElementById('v-save').disabled") is False
    save(browser)
    assert browser.run("document.getElementById('v-save').disabled") is True
    assert np.array_equal(in_ras(nib.load(folder / "case_1.nii.gz")), on_screen)
