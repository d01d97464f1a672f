"""The viewer as a page: served, or standing alone with small cases in it.

A page that stands alone holds the script of NiiVue, our own, and the voxels; opened from a disk it asks for nothing.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from segpipe.errors import SegpipeError
from segpipe.reporting import PREDICTION_COLOUR, TRUTH_COLOUR, Insert, Picture, labelled_figure, write_page
from segpipe.viewer.cases import ViewedCase
from segpipe.viewer.volumes import ShownCase, read_case

HERE = Path(__file__).parent
NIIVUE_FOLDER = HERE / "niivue"
MOST_CASE_BYTES, MOST_PAGE_BYTES = 12_000_000, 60_000_000  # of compressed voxels in a page that stands alone
NO_NIIVUE = (
    "This installation has no NiiVue, which draws volumes, so there are pictures alone. `make viewer` in a checkout "
    "fetches it once, and wheels made after that hold it."
)


def has_niivue() -> bool:
    """Return whether what draws volumes is installed."""
    return niivue_script() is not None


def niivue_script() -> Path | None:
    """Return NiiVue's script, ``niivue-VERSION.js``, where it is installed."""
    return max(NIIVUE_FOLDER.glob("niivue-*.js"), default=None)


def asset(name: str) -> str:
    """Return a file of the folder ``assets``."""
    return (HERE / "assets" / name).read_text(encoding="utf-8")


def viewer_insert(cases: Sequence[ViewedCase], hint: str = "") -> Insert:
    """Return the viewer with its cases in it, for a page that stands alone.

    Cases whose volumes are too large for such a page, or cannot be drawn, are shown as pictures with the reason.

    Args:
        cases: in the order in which they are offered.
        hint: how a case that is too large can be looked at.
    """
    script = niivue_script()
    if script is None:
        return Insert(f'<p class="notice">{escape(NO_NIIVUE)}</p>\n')
    documents, blocks, room = [], [], MOST_PAGE_BYTES
    for number, case in enumerate(cases):
        shown = read_case(case)
        packed = [gzip.compress(volume.nifti(), 6, mtime=0) for volume in shown.volumes]
        size = sum(map(len, packed))
        if size > min(room, MOST_CASE_BYTES):
            reason = f"too large for a page that stands alone: {size / 1e6:.0f} MB. {hint}".strip()
            shown, packed = ShownCase(case.id, notes=shown.notes, pictures_only=reason), []
        room -= sum(map(len, packed))
        documents.append({**shown.document(), "picture": picture_of(case, shown)})
        blocks += [
            f'<script type="text/plain" id="v-{number}-{index}">{base64.b64encode(voxels).decode("ascii")}</script>\n'
            for index, voxels in enumerate(packed)
        ]
    body = markup({"inline": True, "niivue": True, "cases": documents}) + "".join(blocks)
    niivue = script.read_text(encoding="utf-8").replace("</script", "<\\/script")
    return Insert(body, asset("viewer.css"), (niivue, asset("voxels.js"), asset("viewer.js")))


def write_viewer_page(path: Path, title: str, cases: Sequence[ViewedCase], hint: str = "") -> None:
    """Write a page that stands alone with the viewer, whole or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    insert = viewer_insert(cases, hint)
    write_page(path, title, [], "For looking at results; not for diagnosis or treatment.", insert)


def served_page(title: str, ids: Sequence[str], edit: bool = False) -> str:
    """Return the page that a server gives out, which asks for voxels as they are needed, perhaps to edit label maps."""
    data = {"inline": False, "niivue": has_niivue(), "no_niivue": NO_NIIVUE, "cases": [{"id": name} for name in ids]}
    niivue = '<script src="niivue.js"></script>\n' if has_niivue() else ""
    editing = '<script src="editing.js"></script>\n' if edit else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        '<link rel="stylesheet" href="viewer.css">\n</head>\n<body class="v-alone">\n<main>\n'
        f'<h1>{escape(title)}</h1>\n<p class="notice">Not a medical device.</p>\n{markup(data, edit)}</main>\n'
        f'{niivue}<script src="voxels.js"></script>\n<script src="viewer.js"></script>\n{editing}</body>\n</html>\n'
    )


def markup(data: dict[str, Any], edit: bool = False) -> str:
    """Return the viewer's part of a page, with what its script has to know."""
    colours = {"truth": TRUTH_COLOUR, "prediction": PREDICTION_COLOUR}
    text = json.dumps({**data, "colours": colours}, allow_nan=False).replace("<", "\\u003c")
    html = asset("viewer.html").replace("<!-- editing -->\n", asset("editing.html") if edit else "")
    return f'{html}<script type="application/json" id="v-data">{text}</script>\n'


def picture_of(case: ViewedCase, shown: ShownCase) -> str | None:
    """Return a picture for a case whose volumes are not shown, as a data address; None where none can be had."""
    if shown.pictures_only is None and has_niivue():
        return None
    if case.picture is not None and case.picture.is_file():
        return Picture(case.picture.read_bytes(), case.id).source
    with contextlib.suppress(SegpipeError, OSError, ValueError):
        layer = next((layer for layer in case.layers if layer.names), None)
        if layer is not None and not case.is_dicom:
            return Picture(labelled_figure(case.images[0], layer.path, layer.names), case.id).source
    return None
