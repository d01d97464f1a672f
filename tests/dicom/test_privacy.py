"""What a header says of a person stays in the header."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import pytest
from make import MARKER, Grid, plant, series, write

from segpipe.cli.app import run
from segpipe.dicom.privacy import kind_of, no_header_text


def test_warnings_and_logs_are_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    logging.disable(logging.NOTSET)  # a command that ran before may have silenced all
    handler = logging.StreamHandler(sys.stderr)
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom.seg", "pynetdicom.acse")]
    logging.getLogger().addHandler(handler)
    try:
        with no_header_text(), no_header_text():
            for logger in loggers:
                logger.error(MARKER)
            warnings.warn(MARKER, stacklevel=1)
        assert MARKER not in "".join(capfd.readouterr())
        loggers[0].error(MARKER)
        assert MARKER in capfd.readouterr().err
    finally:
        logging.getLogger().removeHandler(handler)
    assert kind_of(ValueError(MARKER)) == "ValueError"


@pytest.mark.parametrize("json", [[], ["--json"]])
@pytest.mark.parametrize("broken", [False, True])
def test_no_marker_leaves_a_scan(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], json: list[str], broken: bool
) -> None:
    images = series(Grid(slices=5))
    for image in images:
        plant(image)
    if broken:  # values that pydicom complains about, quoting them
        images[1].ImagePositionPatient = None
        images[2].SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
    paths = write(images, tmp_path)
    content = paths[0].read_bytes()
    assert content.count(MARKER.encode()) > 100
    if broken:
        paths[0].write_bytes(content.replace(b"19700101", f"{MARKER:.8}".encode()).replace(b"-1000", b"MARKE"))
        paths[3].write_bytes(content[: content.rindex(MARKER.encode()) + 4])
    assert run(["scan", str(tmp_path), *json]) == 0
    assert MARKER[:5] not in "".join(capfd.readouterr())
