"""Images of DICOM cases, read again for a report or a choice of cases as they were predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dicom import make
from segpipe.cohort.descriptors import first_series
from segpipe.cohort.write import _of_series
from segpipe.dicom import admitted, load_series, scan
from segpipe.errors import DataError


def test_a_series_that_was_repaired_is_read_on_its_regular_grid(tmp_path: Path) -> None:
    make.write(make.tilted(), tmp_path)
    (series,) = admitted(scan(tmp_path).series, ("tilt",))
    values, affine = _of_series(series.case_id, [str(path) for path in series.files])
    np.testing.assert_array_equal(values, load_series(series).array)
    np.testing.assert_allclose(affine, series.affine_ras)
    assert first_series(series.files).repaired == ("tilt",)


def test_a_pet_has_no_intensities_in_a_table_without_a_unit(tmp_path: Path) -> None:
    make.write(make.series(modality="PT", Units="BQML"), tmp_path)
    (series,) = scan(tmp_path).series
    with pytest.raises(DataError, match="it is a PET, and the table has no unit"):
        _of_series(series.case_id, [str(path) for path in series.files])
