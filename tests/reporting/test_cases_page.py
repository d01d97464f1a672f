"""The page of a batch: of many cases the pictures are smaller, so that a browser can open it."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segpipe.reporting import cases_page, write_cases_page

SIDE = 120


def case(number: int) -> dict[str, Any]:
    return {
        "id": f"case_{number}",
        "state": "done",
        "seconds": 1.0,
        "reasons": [],
        "volumes_ml": {"liver": 1.0},
        "flags": {},
    }


def pictures(page: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in found]


@pytest.fixture
def rows(tmp_path: Path) -> list[tuple[dict[str, Any], Path]]:
    found = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(path)
        found.append((case(number), path))
    return found


def write(path: Path, rows: list[tuple[dict[str, Any], Path]]) -> str:
    write_cases_page(path, "Page", rows, {1: "liver"}, "", [], {})
    return path.read_text()


def test_few_pictures_stand_in_it_as_they_are(tmp_path: Path, rows: Any) -> None:
    page = write(tmp_path / "page.html", rows)
    assert base64.b64encode(rows[0][1].read_bytes()).decode() in page and "of their size" not in page


def test_many_are_smaller_and_it_is_said(tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    total = sum(file.stat().st_size for _, file in rows)
    monkeypatch.setattr(cases_page, "MOST_BYTES", total // 4)
    page = write(tmp_path / "page.html", rows)
    assert "So many are drawn at 50 % of their size" in page
    shown = [each for each in pictures(page) if each.size == (SIDE // 2, SIDE // 2)]
    assert len(shown) == 4
    whole = np.asarray(Image.open(rows[0][1]).resize(shown[0].size, Image.Resampling.LANCZOS)).astype(float)
    apart = np.abs(np.asarray(shown[0].convert("RGB")).astype(float) - whole).mean()
    assert apart < 0.5 * np.abs(np.asarray(shown[1].convert("RGB")).astype(float) - whole).mean()
