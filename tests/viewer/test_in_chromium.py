"""The viewer in Debian's Chromium: what stands on the screen is what stands in the files, and nothing is asked for.

Where a voxel has to be on the screen is computed here, from the letters' convention alone.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from chromium import NO_CHROMIUM, PROGRAM, Browser
from PIL import Image
from tiny_results import LEFT, NAMES, RIGHT, SHAPE, SPACING_MM, Tiny, ras_affine, save, write_results

from segpipe.common.result_folder import ENTROPY, OVERLAY
from segpipe.reporting import Panel, colour_of, gallery
from segpipe.reporting.failure_gallery import FILLS
from segpipe.viewer import ViewServer, find_viewed, has_niivue, write_viewer_page
from segpipe.viewer import page as viewer_page

NO_NIIVUE = "NiiVue is not there (make viewer)"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason=NO_CHROMIUM),
    pytest.mark.skipif(not has_niivue(), reason=NO_NIIVUE),
]
# axis that goes from the right edge to the left one, and from the bottom to the top; both rise that way
AXES = {0: (0, 1), 1: (0, 2), 2: (1, 2)}  # of NiiVue's numbers of axial, coronal and sagittal
SMALL = (820, 520)  # pixels: few, for a processor draws them
READY = "document.getElementById('v-state')?.textContent === '' && globalThis.segpipeViewer"


@contextmanager
def served(tiny: Tiny, truth: bool = True) -> Iterator[ViewServer]:
    cases = find_viewed(tiny.out, truth=tiny.truth if truth else None)
    with ViewServer(cases, "Results") as server:
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        yield server
        server.stop()
        thread.join()


def opened(browser: Browser, address: str) -> None:
    browser.open(address)
    browser.wait_for(READY)
    browser.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


@pytest.fixture(scope="module", params=[("PSL", False), ("LIA", True)], ids=["PSL", "turned"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    codes, turned = request.param
    return write_results(tmp_path_factory.mktemp("view"), codes, turned)


@pytest.fixture(scope="module")
def server(tiny: Tiny) -> Iterator[ViewServer]:
    with served(tiny) as server:
        yield server


@pytest.fixture(scope="module")
def browser(server: ViewServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium"), SMALL) as browser:
        opened(browser, server.url)
        yield browser


def tiles(browser: Browser) -> dict[int, tuple[float, float, float, float]]:
    """Left, top, width and height of each plane and of the 3D view (4), in pixels of the page."""
    found = json.loads(
        browser.run(
            """(() => { const box = document.getElementById('v-canvas').getBoundingClientRect();
            return JSON.stringify(segpipeViewer.nv.screenSlices.map((tile) => {
                const [left, top, width, height] = tile.leftTopWidthHeight;
                return [tile.axCorSag, box.left + left, box.top + top, width, height]; })); })()"""
        )
    )
    return {int(kind): (left, top, width, height) for kind, left, top, width, height in found}


def place(tile: tuple[float, float, float, float], plane: int, voxel: tuple[int, int, int]) -> tuple[float, float]:
    """Where the middle of a voxel is on the screen: the patient's right, or front, on the left; head or front above."""
    left, top, width, height = tile
    across, up = AXES[plane]
    return (
        left + width * (1 - (voxel[across] + 0.5) / SHAPE[across]),
        top + height * (1 - (voxel[up] + 0.5) / SHAPE[up]),
    )


def go_to(browser: Browser, voxel: tuple[int, int, int], turned: bool) -> None:
    x, y, z = nib.affines.apply_affine(ras_affine(turned), voxel)
    browser.run(f"segpipeViewer.jump([{x}, {y}, {z}])")


def is_turned(tiny: Tiny) -> bool:
    return not np.allclose(nib.load(tiny.truth.parent / "image.nii.gz").affine.round(6) % 0.5, 0)


def rows(browser: Browser) -> dict[str, tuple[str, float]]:
    """What is said under the cross, and the number behind it, by layer."""
    found = browser.run(
        "JSON.stringify([...document.querySelectorAll('#v-values tr')].map((row) => "
        "[row.children[0].textContent, row.children[1].textContent, row.dataset.value]))"
    )
    return {name: (words, float(value)) for name, words, value in json.loads(found)}


def opacity(browser: Browser, value: float) -> None:
    browser.run(
        f"(() => {{ const slide = document.getElementById('v-opacity'); slide.value = {value};"
        "slide.dispatchEvent(new Event('input')); })()"
    )


def test_pixels_of_the_three_planes_and_of_3d_have_the_colours_of_the_labels(tiny: Tiny, browser: Browser) -> None:
    opacity(browser, 1)
    browser.run("segpipeViewer.nv.setCrosshairWidth(0)")
    for value in (LEFT, RIGHT):
        middle = tuple(int(index) for index in np.argwhere(tiny.labels == value).mean(axis=0))
        go_to(browser, middle, is_turned(tiny))
        picture, found = browser.picture(), tiles(browser)
        assert {0, 1, 2, 4} <= set(found)
        for plane in AXES:
            normal = ({0, 1, 2} - set(AXES[plane])).pop()
            cut = np.take(tiny.labels, middle[normal], axis=normal)
            for a, b in [(0, 0), (3, 2), (-3, 2), (9, 9), (-9, 12), (14, -3)]:
                voxel = list(middle)
                voxel[AXES[plane][0]] += a
                voxel[AXES[plane][1]] += b
                if any(not 2 <= index < size - 2 for index, size in zip(voxel, SHAPE, strict=True)):
                    continue
                x, y = place(found[plane], plane, (voxel[0], voxel[1], voxel[2]))
                here = cut[tuple(voxel[axis] for axis in sorted(AXES[plane]))]
                pixel = picture[round(y), round(x)]
                if here:
                    assert np.abs(pixel - colour_of(int(here))).max() < 12, (plane, voxel, pixel)
                else:
                    assert np.ptp(pixel) < 12, (plane, voxel, pixel)  # grey
        left, top, width, height = (round(side) for side in found[4])
        shown = picture[top : top + height, left : left + width]
        for each in (LEFT, RIGHT):
            of_hue = np.abs(_hue(shown) - _hue(np.array(colour_of(each)))) < 0.05
            assert (of_hue & (np.ptp(shown, axis=-1) > 60)).sum() > 50, each
    opacity(browser, 0.5)


def _hue(colour: np.ndarray) -> np.ndarray:
    part = (colour - colour.min(axis=-1, keepdims=True)) / np.maximum(np.ptp(colour, axis=-1), 1)[..., None]
    return np.arctan2(np.sqrt(3) * (part[..., 1] - part[..., 2]), 2 * part[..., 0] - part[..., 1] - part[..., 2])


@pytest.mark.parametrize("plane", [0, 1, 2])
def test_the_value_under_a_click_is_that_of_the_file(tiny: Tiny, browser: Browser, plane: int) -> None:
    rng = np.random.default_rng(plane)
    image = nib.load(tiny.truth.parent / "image.nii.gz")
    inside = [tuple(int(part) for part in index) for index in np.argwhere(tiny.labels == LEFT)[::400]]
    for start in [*inside, *(tuple(int(part) for part in rng.integers(2, np.array(SHAPE) - 2)) for _ in range(3))]:
        go_to(browser, start, is_turned(tiny))
        clicked = list(start)
        for axis in AXES[plane]:
            clicked[axis] = int(rng.integers(1, SHAPE[axis] - 1))
        browser.click(*place(tiles(browser)[plane], plane, (clicked[0], clicked[1], clicked[2])))
        said = rows(browser)
        x, y, z = clicked
        assert said["image"][1] == tiny.image[x, y, z], (start, clicked)
        assert said["prediction"][1] == tiny.labels[x, y, z]
        assert said["truth"][1] == tiny.true[x, y, z]
        assert said["entropy"][1] == (0.625 if tiny.labels[x, y, z] == LEFT else 0)
        words = browser.run("document.getElementById('v-place').textContent")
        in_file = [int(part) for part in words.partition("voxel ")[2].split(",")]
        assert image.get_fdata()[tuple(in_file)] == tiny.image[x, y, z]
        mm = nib.affines.apply_affine(image.affine, in_file)
        signs = ["R" if mm[0] >= 0 else "L", "A" if mm[1] >= 0 else "P", "S" if mm[2] >= 0 else "I"]
        for number, sign, part in zip(mm, signs, words.partition(" mm")[0].split(", "), strict=True):
            letter, size = part.split()
            assert (letter, float(size)) == (sign, pytest.approx(abs(number), abs=0.06))


def test_units_and_names_stand_beside_the_values(tiny: Tiny, browser: Browser) -> None:
    go_to(browser, (10, 32, 20), is_turned(tiny))
    said = rows(browser)
    assert said["entropy"][0] == "0.625 nat"
    assert said["prediction"][0] == "mark on the left (1)"
    assert browser.run("document.getElementById('v-unit').textContent") == "(no unit in the file)"
    go_to(browser, (6, 32, 20), is_turned(tiny))  # labelled, and not in truth
    assert rows(browser)["prediction against truth"][0] == "prediction alone (1)"
    go_to(browser, (14, 32, 20), is_turned(tiny))
    assert rows(browser)["prediction against truth"][0] == "truth alone (2)"


def test_a_mark_on_the_patients_left_is_on_the_same_side_in_viewer_overlay_and_gallery(
    tiny: Tiny, browser: Browser
) -> None:
    opacity(browser, 1)
    browser.run("segpipeViewer.nv.setCrosshairWidth(0)")
    for value in (LEFT, RIGHT):
        middle = tuple(int(index) for index in np.argwhere(tiny.labels == value).mean(axis=0))
        go_to(browser, middle, is_turned(tiny))
        picture, found = browser.picture(), tiles(browser)
        for plane in (0, 1):
            left, top, width, height = (round(side) for side in found[plane])
            column = _column(picture[top : top + height, left : left + width], colour_of(value))
            assert (column > 0.5) == (value == LEFT)
    opacity(browser, 0.5)
    content = np.asarray(Image.open(tiny.out / "case_1" / OVERLAY).convert("RGB")).astype(int)
    assert _column(content, colour_of(LEFT)) > 0.5 > _column(content, colour_of(RIGHT))
    black = Panel("case_1", "", np.zeros(SHAPE), tiny.labels, tiny.labels, SPACING_MM, NAMES)
    shown = np.asarray(Image.open(io.BytesIO(gallery([black]))).convert("RGB")).astype(int)
    axial = shown[:, : shown.shape[1] // 3]
    tints = [0.22 * np.array([int(fill[at : at + 2], 16) for at in (1, 3, 5)]) for fill in FILLS[:2]]
    left, right = (np.nonzero(np.abs(axial - tint).max(-1) < 6)[1] for tint in tints)
    assert min(left.size, right.size) > 50 and left.min() > right.max()


def test_letters_stand_at_the_edges_that_they_name(browser: Browser) -> None:
    found = json.loads(
        browser.run(
            "JSON.stringify([...document.querySelectorAll('#v-letters span')].map((each) => { "
            "const box = each.getBoundingClientRect(); "
            "return [each.textContent, box.left + box.width / 2, box.top + box.height / 2]; }))"
        )
    )
    planes = tiles(browser)
    assert len(found) == 12
    for kind, letters in ((0, "RLAP"), (1, "RLSI"), (2, "APSI")):
        left, top, width, height = planes[kind]
        inside = [each for each in found if left <= each[1] <= left + width and top <= each[2] <= top + height]
        places = {letter: ((x - left) / width, (y - top) / height) for letter, x, y in inside}
        assert set(places) == set(letters)
        west, east, north, south = (places[letter] for letter in letters)
        assert west[0] < 0.15 and east[0] > 0.85 and north[1] < 0.15 and south[1] > 0.85


def _column(picture: np.ndarray, colour: tuple[int, int, int]) -> float:
    """Mean place of a colour from the left edge, as a share of the width."""
    near = np.abs(picture - colour).max(-1) < 25
    assert near.sum() > 30
    return float(np.nonzero(near)[1].mean() / picture.shape[1])


def test_nothing_is_asked_for_beyond_the_server(server: ViewServer, browser: Browser) -> None:
    assert browser.complaints == []
    assert len(browser.requests) >= 8
    assert {address for address in browser.requests if not address.startswith(server.url)} == set()


def test_keys_and_windows_and_lengths(tiny: Tiny, browser: Browser) -> None:
    turned = is_turned(tiny)
    start = (20, 24, 15)
    go_to(browser, start, turned)
    browser.run("document.getElementById('v-canvas').focus()")
    for key, step in {
        "ArrowLeft": (1, 0, 0),
        "ArrowRight": (-1, 0, 0),
        "ArrowUp": (0, 1, 0),
        "ArrowDown": (0, -1, 0),
        "PageUp": (0, 0, 1),
        "PageDown": (0, 0, -1),
    }.items():
        go_to(browser, start, turned)
        browser.key(key)
        x, y, z = np.add(start, step)
        assert rows(browser)["image"][1] == tiny.image[x, y, z], key
    go_to(browser, start, turned)
    browser.key("m")
    go_to(browser, (23, 28, 15), turned)
    apart = np.linalg.norm([3 * SPACING_MM[0], 4 * SPACING_MM[1]])
    assert browser.run("document.getElementById('v-lengths').textContent") == f"from the mark: {apart:.1f} mm"
    browser.run("document.getElementById('v-clear').click(); document.getElementById('v-measure').click()")
    tile = tiles(browser)[0]
    ends = [(10, 10, 15), (30, 40, 15)]
    browser.drag(place(tile, 0, ends[0]), place(tile, 0, ends[1]))
    apart = np.linalg.norm([20 * SPACING_MM[0], 30 * SPACING_MM[1]])
    said = browser.run("document.getElementById('v-lengths').textContent")
    assert float(said.removesuffix(" mm")) == pytest.approx(apart, abs=0.5)
    browser.run("document.getElementById('v-clear').click(); document.getElementById('v-measure').click()")
    x, y = place(tiles(browser)[0], 0, (3, 44, 15))
    go_to(browser, start, turned)
    for low, high in ((0, 1000), (500, 4000)):
        browser.run(
            f"for (const [name, value] of [['low', {low}], ['high', {high}]]) {{"
            "const box = document.getElementById(`v-${name}`); box.value = value;"
            "box.dispatchEvent(new Event('change')); }"
        )
        grey = browser.picture()[round(y), round(x)]
        wanted = 255 * np.clip((tiny.image[3, 44, 15] - low) / (high - low), 0, 1)
        assert np.abs(grey - wanted).max() <= 3, (low, high)
    browser.run("document.getElementById('v-canvas').focus()")
    browser.key("w")
    for key, shown in (("2", {0}), ("3", {1}), ("4", {2}), ("1", {0, 1, 2, 4})):
        browser.key(key)
        browser.picture()
        assert set(tiles(browser)) == shown, key


def test_layers_and_labels_go_on_and_off(tiny: Tiny, browser: Browser) -> None:
    opacity(browser, 1)
    browser.run("segpipeViewer.nv.setCrosshairWidth(0)")
    voxel = (10, 32, 20)
    go_to(browser, voxel, is_turned(tiny))
    x, y = place(tiles(browser)[0], 0, voxel)

    def pixel() -> np.ndarray:
        return browser.picture()[round(y), round(x)]

    def toggle(box: str, name: str) -> None:
        browser.run(
            f"[...document.querySelectorAll('#v-{box} label')].find((each) => each.textContent.includes('{name}'))"
            ".querySelector('input').click()"
        )

    assert np.abs(pixel() - colour_of(LEFT)).max() < 12
    toggle("labels", "mark on the left")
    assert np.ptp(pixel()) < 12
    toggle("labels", "mark on the left")
    toggle("layers", "prediction")
    assert np.ptp(pixel()) < 12
    toggle("layers", "entropy")
    assert np.ptp(pixel()) > 60
    assert browser.run("document.getElementById('v-map-unit').textContent") == "nat"
    toggle("layers", "entropy")
    toggle("layers", "prediction against truth")
    assert np.ptp(pixel()) < 12  # they agree here
    go_to(browser, (6, 32, 20), is_turned(tiny))
    x, y = place(tiles(browser)[0], 0, (6, 32, 20))
    assert np.abs(pixel() - (255, 43, 32)).max() < 12  # the prediction alone
    toggle("layers", "prediction against truth")
    toggle("layers", "prediction")
    opacity(browser, 0.5)


@pytest.mark.parametrize("dark", [False, True])
def test_it_can_be_read_at_twice_the_size_in_light_and_dark(tmp_path: Path, dark: bool) -> None:
    tiny = write_results(tmp_path)
    with served(tiny) as server, Browser(tmp_path, (640, 450), dark) as browser:
        opened(browser, server.url)
        assert browser.run("document.scrollingElement.scrollWidth") <= 640
        assert set(tiles(browser)) == {0, 1, 2, 4}
        ground = browser.run("getComputedStyle(document.body).backgroundColor")
        assert (sum(int(part) for part in ground[4:-1].split(",")) < 150) == dark


def test_a_page_that_stands_alone_asks_for_nothing(tmp_path: Path) -> None:
    tiny = write_results(tmp_path)
    page = tmp_path / "page.html"
    write_viewer_page(page, "Alone", find_viewed(tiny.out, truth=tiny.truth))
    (tiny.truth.parent / "image.nii.gz").unlink()
    with Browser(tmp_path, SMALL) as browser:
        opened(browser, page.as_uri())
        assert browser.requests == [page.as_uri()]
        assert browser.complaints == []
        voxel = (10, 32, 20)
        go_to(browser, voxel, False)
        assert rows(browser)["image"][1] == tiny.image[voxel]
        opacity(browser, 1)
        x, y = place(tiles(browser)[1], 1, (8, 32, 18))
        assert np.abs(browser.picture()[round(y), round(x)] - colour_of(LEFT)).max() < 12
        assert browser.requests == [page.as_uri()]


def test_pictures_stand_in_where_a_grid_is_sheared_or_nothing_can_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = write_results(tmp_path)
    with Browser(tmp_path, SMALL) as browser:
        monkeypatch.setattr(viewer_page, "NIIVUE_FOLDER", tmp_path / "none")
        with served(tiny) as server:
            opened(browser, server.url)
            assert "no NiiVue" in browser.run("document.getElementById('v-why').textContent")
            assert browser.run("document.getElementById('v-picture').naturalWidth") > 100
        monkeypatch.undo()
        sheared = ras_affine()
        sheared[0, 2] += 1.2
        for path, voxels in (
            (tiny.truth.parent / "image.nii.gz", tiny.image),
            (tiny.out / "case_1" / "segmentation.nii.gz", tiny.labels),
            (tiny.out / "case_1" / ENTROPY, tiny.labels.astype(np.float32)),
        ):
            image = nib.Nifti1Image(voxels, sheared)
            image.set_qform(None, code=0)
            nib.save(image, path)
        with served(tiny, truth=False) as server:
            opened(browser, server.url)
            assert "sheared" in browser.run("document.getElementById('v-why').textContent")
            assert browser.run("document.getElementById('v-picture').naturalWidth") > 100
            assert browser.run("document.getElementById('v-work').hidden")
        save(tiny.truth.parent / "image.nii.gz", tiny.image, "RAS", ras_affine())
    with Browser(tmp_path / "without", flags=("--disable-3d-apis",)) as browser, served(tiny, truth=False) as server:
        opened(browser, server.url)
        assert "WebGL 2" in browser.run("document.getElementById('v-why').textContent")
