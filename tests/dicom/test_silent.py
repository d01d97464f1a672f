"""Nothing is silently wrong: each trap is refused for its reason, or its values are those of pydicom."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from make import series, write
from pydicom import dcmread
from traps import TRAPS

from segpipe.dicom.model import Volume
from segpipe.dicom.privacy import no_header_text
from segpipe.dicom.scanning import scan
from segpipe.dicom.volume import load_series
from segpipe.dicom.write.sources import obstacles
from segpipe.errors import DataError


def outcome(folder: Path) -> tuple[list[str | None], str, list[Volume]]:
    """Return the reason of each series (None where it loads), all that was said, and the volumes."""
    reasons: list[str | None] = []
    found = scan(folder)
    words, volumes = " ".join(file.detail for file in found.passed_over), []
    for one in found.series:
        words += one.detail + " ".join(one.notes)
        reasons.append(one.reason)
        if one.reason is None:
            try:
                volumes.append(load_series(one))
                words += " ".join(volumes[-1].notes)
            except DataError as error:
                reasons[-1] = error.reason
                words += str(error)
    return reasons, words, volumes


def assert_right(volume: Volume) -> None:
    """Compare with the pixels as pydicom decodes them, wherever HighBit says they are."""
    for place, frame in enumerate(volume.series.frames):
        with no_header_text():
            image = dcmread(frame.path)
            bits = image.BitsStored
            beyond = image.HighBit + 1 - bits  # which pydicom does not know of
            if beyond > 0:
                image.BitsStored = image.BitsAllocated
            stored = image.pixel_array.reshape(-1, image.Rows, image.Columns)[frame.number]
            if beyond > 0:
                stored = stored >> beyond & ((1 << bits) - 1)
        values = stored * float(image.get("RescaleSlope") or 1) + float(image.get("RescaleIntercept") or 0)
        known = (stored != image.get("PixelPaddingValue", None)).T
        ours = volume.array[:, :, place]
        np.testing.assert_array_equal(ours[known], values.T[known].astype(ours.dtype))


@pytest.mark.parametrize("name", TRAPS)
def test_no_trap_is_silently_wrong(name: str, tmp_path: Path) -> None:
    trap = TRAPS[name]
    trap.make(tmp_path / "series")
    reasons, words, volumes = outcome(tmp_path)
    assert reasons == [trap.reason] * trap.volumes, words
    for part in trap.words:
        assert part in words
    for volume in volumes:
        assert_right(volume)


REAL = {  # what becomes of each folder: the reason of each series, and words of its refusal or notes
    "dicom/01_ct_axial": ([None], ""),
    "dicom/04_mr_coronal": ([None], ""),
    "dicom/05_double_oblique_nonsquare": ([None], "3 studies"),
    "dicom/06_flipped_iop": ([None], ""),
    "dicom/11_gap_missing_slice": (["gap"], "10.000 mm"),
    "dicom/23_d2n_tilt4": (["gantry_tilt"], "14.00 degrees"),
    "dicom/26_single_slice": (["single_slice"], ""),
    "dicom/32_fmri_philips_3t": ([None] * 3, "TemporalPosition"),
    "dicom/40_enh_siemens_3d": ([None], ""),
    "dicom/50_comp_jpegls": ([None], ""),
    "dicom/52_pet_rescale_per_slice": ([None], ""),
    "dicom/62_nonimage_sr_rt_dicomdir": ([None], ""),
    "field/dicom/missing_end": ([None], "speaks of 32 images, 30 were found"),
    "field/dicom/t01b_highbit15_rle": ([None], "HighBit 15"),
    "field/dicom/t03_micro_0.1_missing_slice": (["gap"], "0.200 mm apart"),
    "field/dicom/t04a_interleaved_two_echoes": ([None] * 2, "split by EchoTime"),
    "field/dicom/t05_own_frame_of_reference_each": ([None], "no DICOM SEG"),
    "field/dicom/t06a_two_patients_one_series_uid": (["mixed_attributes"], "PatientID"),
    "field/dicom/t07a_ct_one_slice_without_rescale": (["mixed_attributes"], "RescaleSlope"),
    "field/dicom/t09a_rows_halved_pixeldata_twice_as_long": (["pixel_layout"], "2560 bytes"),
    "field/dicom/t09c_multiframe_without_numberofframes": (["pixel_layout"], "15360 bytes"),
    "field/dicom/t10b_concatenation_last_part_missing": (["incomplete"], "expected 1 to 3"),
    "field/dicom/t22_midnight_two_volumes_no_date": ([None] * 2, "past midnight"),
    "field/dicom/t50_declared_explicit_is_implicit_trailing_padding": (["transfer_syntax"], "implicit VR"),
}


@pytest.mark.realdata
@pytest.mark.parametrize("name", REAL)
def test_no_real_folder_is_silently_wrong(name: str) -> None:
    expected, words = REAL[name]
    reasons, said, volumes = outcome(Path(os.environ["SEGPIPE_DATA"]) / name)
    assert reasons == expected and words in said
    for volume in volumes:
        assert_right(volume)


@pytest.mark.realdata
def test_every_real_folder_has_its_row() -> None:
    root = Path(os.environ["SEGPIPE_DATA"])
    folders = [path for part in ("dicom", "field/dicom") for path in (root / part).iterdir() if path.is_dir()]
    assert {str(path.relative_to(root)) for path in folders} == set(REAL)


def test_no_seg_of_slices_with_a_frame_of_reference_each(tmp_path: Path) -> None:
    TRAPS["a frame of reference each"].make(tmp_path / "series")
    one = scan(tmp_path).series[0]
    assert one.frame_of_reference_uid == ""
    assert obstacles(one) == ["its slices differ in FrameOfReferenceUID"]


def test_a_missing_part_refuses_no_other_volume_of_the_series(tmp_path: Path) -> None:
    TRAPS["the last part missing"].make(tmp_path / "parts")
    part = dcmread(next((tmp_path / "parts").iterdir()))
    others = series(modality="CT", StudyInstanceUID=part.StudyInstanceUID, SeriesInstanceUID=part.SeriesInstanceUID)
    write(others, tmp_path / "others")
    assert sorted(str(one.reason) for one in scan(tmp_path).series) == ["None", "incomplete"]


def test_notes_and_refusals_say_nothing_of_a_person(tmp_path: Path) -> None:
    for name in ("two patients, halves", "two of PatientName", "two kernels", "two of Manufacturer", "two issuers"):
        TRAPS[name].make(tmp_path / name.replace(" ", "_"))
    words = " ".join(one.detail + " ".join(one.notes) for one in scan(tmp_path).series)
    assert not re.search(r"0815|4711|Doe|Roe|B30f|B70f|\bnone\b", words)


@pytest.mark.realdata
def test_two_times_past_midnight_are_whole() -> None:
    """Each volume is of twelve seconds in a row."""
    folder = Path(os.environ["SEGPIPE_DATA"]) / "field/dicom/t22_midnight_two_volumes_no_date"
    for volume in outcome(folder)[2]:
        times = [str(dcmread(frame.path).AcquisitionTime) for frame in volume.series.frames]
        seconds = [int(time[:2]) * 3600 + int(time[2:4]) * 60 + int(time[4:6]) for time in times]
        assert np.ptp([(second + 43200) % 86400 for second in seconds]) == 11
