"""Series that look like volumes: each is edited in one way, and has to be refused for it, or loaded with a note."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from make import AXIAL, CORONAL, OBLIQUE, SAGITTAL, Grid, decimal, enhanced, series, write
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless, generate_uid

from segpipe.dicom.geometry import levels
from segpipe.dicom.model import Scan
from segpipe.dicom.scanning import scan

Images = list[Dataset]


def shift(image: Dataset, *millimetres: float) -> None:
    image.ImagePositionPatient = decimal(np.array(image.ImagePositionPatient, float) + millimetres)


def tilt(images: Images, degrees: float) -> None:
    for number, image in enumerate(images):
        shift(image, 0, number * 3.0 * np.tan(np.radians(degrees)), 0)


def every(images: Images, name: str, value: object) -> None:
    for image in images:
        setattr(image, name, value)


def gap(images: Images) -> None:
    del images[2]


def two_gaps(images: Images) -> None:
    del images[7:9]
    del images[2]


def spread(images: Images) -> None:
    for number, image in enumerate(images):
        shift(image, 0, 0, 0.25 * number**1.5)


def halves(images: Images) -> None:
    for number, image in enumerate(images[6:], start=1):
        shift(image, 0, 0, 3.0 * number)


def lie(images: Images) -> None:
    """What headers say of the distance is never used."""
    every(images, "SpacingBetweenSlices", "6")
    every(images, "SliceThickness", "6")
    del images[2]


def turned(image: Dataset, orientation: tuple[float, ...] = CORONAL) -> None:
    image.ImageOrientationPatient = decimal(orientation)


def half_turned(images: Images) -> None:
    for image in images[5:]:
        turned(image)


def rotated(images: Images) -> None:
    """By one degree about the normal: the rows of one slice are not those of the others."""
    a = np.radians(1)
    turned(images[4], (np.cos(a), np.sin(a), 0, -np.sin(a), np.cos(a), 0))


def smaller(image: Dataset) -> None:
    image.Rows = 6
    image.PixelData = image.PixelData[: 6 * image.Columns * 2]


def doubled(images: Images) -> None:
    for image in list(images):
        copy = deepcopy(image)
        copy.SOPInstanceUID = generate_uid()
        copy.PixelData = bytes(reversed(image.PixelData))
        images.append(copy)


def one_doubled(images: Images) -> None:
    doubled(images)
    del images[11:]


def film(images: Images) -> None:
    for number, image in enumerate(images):
        image.ImagePositionPatient, image.TriggerTime = [1, 2, 3], str(40 * number)


def csa(images: Images) -> None:
    for image in images:
        block = image.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        head = b"NumberOfImagesInMosaic".ljust(64, b"\0") + np.array([1, 0x5355, 0, 6, 77], "<i4").tobytes()
        block.add_new(0x10, "OB", b"SV10\4\3\2\1" + head + np.array([2, 2, 77, 2], "<i4").tobytes() + b"36\0\0")


def uih(images: Images) -> None:
    for image in images:
        image.private_block(0x0065, "Image Private Header", create=True).add_new(0x50, "DS", "36")


def mosaic(images: Images) -> None:
    every(images, "ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"])


def siemens(images: Images) -> None:
    for image in images:
        image.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 36)


def cut_stream(images: Images) -> None:
    images[3].compress(RLELossless, generate_instance_uid=False)
    images[3].PixelData = images[3].PixelData[:-60]


def conflict(images: Images) -> None:
    copy = deepcopy(images[3])
    copy.PixelData = bytes(len(copy.PixelData))
    images.append(copy)


def conflict_of_places(images: Images) -> None:
    copy = deepcopy(images[-1])
    shift(copy, 0, 0, 3)
    images.append(copy)


def to_color(image: Dataset) -> None:
    image.PhotometricInterpretation, image.SamplesPerPixel, image.PlanarConfiguration = "RGB", 3, 0
    image.PixelData = image.PixelData * 3


def unknown_syntax(images: Images) -> None:
    from pydicom.encaps import encapsulate

    for image in images:
        image.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
        image.PixelData = encapsulate([b"\0\0\1\xb3 a film \xff\xd9"])


def multi_frame_without_places(images: Images) -> None:
    image = images[0]
    image.NumberOfFrames, image.PixelData = 6, image.PixelData * 6
    del images[1:]


def missing(name: str, number: int = 4) -> Callable[[Images], None]:
    return lambda images: delattr(images[number], name)


def no_bits(images: Images) -> None:
    images[4]["PixelData"].VR = "OW"
    del images[4].BitsAllocated


def setting(name: str, value: object, number: int = 4) -> Callable[[Images], None]:
    return lambda images: setattr(images[number], name, value)


REFUSED: dict[str, tuple[str, Callable[[Images], object]]] = {
    "gap": ("gap", gap),
    "two gaps": ("gap", two_gaps),
    "gap, whatever SpacingBetweenSlices says": ("gap", lie),
    "every third slice missing": ("gap", lambda images: images.__delitem__(slice(2, None, 3))),
    "every distance another": ("variable_spacing", spread),
    "two distances, one twice the other": ("variable_spacing", halves),
    "one slice half way off": ("variable_spacing", lambda images: shift(images[4], 0, 0, 1.2)),
    "tilt of 14 degrees": ("gantry_tilt", lambda images: tilt(images, 14)),
    "tilt of 2 degrees": ("gantry_tilt", lambda images: tilt(images, 2)),
    "one slice beside": ("in_plane_shift", lambda images: shift(images[4], 5, 0, 0)),
    "half the slices beside": ("in_plane_shift", lambda images: [shift(image, 0, 4, 0) for image in images[:5]]),
    "half the slices turned": ("mixed_orientation", half_turned),
    "a slice within turned": ("mixed_orientation", lambda images: turned(images[4])),
    "a slice at the end turned": ("mixed_orientation", lambda images: turned(images[-1])),
    "a slice rotated in its plane": ("mixed_orientation", rotated),
    "a slice slightly turned": ("mixed_orientation", lambda images: turned(images[4], (1, 0, 0, 0, 0.9998, 0.02))),
    "a smaller matrix at the end": ("mixed_matrix", lambda images: smaller(images[-1])),
    "half with a smaller matrix": ("mixed_matrix", lambda images: [smaller(image) for image in images[:5]]),
    "another pixel spacing": ("mixed_matrix", setting("PixelSpacing", ["1.5", "1.5"])),
    "every position twice": ("repeated_positions", doubled),
    "one position twice": ("repeated_positions", one_doubled),
    "all at one position": ("repeated_positions", lambda images: every(images, "ImagePositionPatient", [1, 2, 3])),
    "a film of one slice": ("repeated_positions", film),
    "mosaic by image type": ("mosaic", mosaic),
    "mosaic by CSA header": ("mosaic", csa),
    "mosaic by Siemens' tag": ("mosaic", siemens),
    "grid by United Imaging's tag": ("mosaic", uih),
    "one slice": ("single_slice", lambda images: images.__delitem__(slice(1, None))),
    "no position": ("missing_tag", missing("ImagePositionPatient")),
    "no orientation": ("missing_tag", missing("ImageOrientationPatient")),
    "no pixel spacing": ("missing_tag", missing("PixelSpacing")),
    "no position at the end": ("missing_tag", missing("ImagePositionPatient", -1)),
    "no instance UID": ("missing_tag", missing("SOPInstanceUID")),
    "no bits": ("missing_tag", no_bits),
    "some without frame of reference": ("missing_tag", missing("FrameOfReferenceUID")),
    "spacing of 0": ("missing_tag", setting("PixelSpacing", ["0", "1.25"])),
    "negative spacing": ("missing_tag", setting("PixelSpacing", ["1.5", "-1.25"])),
    "a position of two numbers": ("missing_tag", setting("ImagePositionPatient", ["1", "2"])),
    "axes not at right angles": ("missing_tag", setting("ImageOrientationPatient", decimal((1, 0, 0, 0.5, 0.86, 0)))),
    "axes of length 0": ("missing_tag", setting("ImageOrientationPatient", [0] * 6)),
    "many frames, no places": ("missing_tag", multi_frame_without_places),
    "short pixels": ("truncated", lambda images: setattr(images[3], "PixelData", images[3].PixelData[:-2])),
    "no pixels": ("truncated", missing("PixelData")),
    "cut stream": ("truncated", cut_stream),
    "more frames than pixels": ("truncated", setting("NumberOfFrames", 2)),
    "color": ("color", lambda images: [to_color(image) for image in images]),
    "one color picture": ("color", lambda images: to_color(images[-1])),
    "palette": ("color", setting("PhotometricInterpretation", "PALETTE COLOR")),
    "color by its tags alone": ("color", setting("SamplesPerPixel", 3)),
    "a film": ("transfer_syntax", unknown_syntax),
    "a UID with other pixels": ("duplicate_conflict", conflict),
    "a UID at another place": ("duplicate_conflict", conflict_of_places),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    reason, edit = REFUSED[case]
    images = series(Grid(slices=10))
    edit(images)
    paths = write(images, tmp_path)
    found = scan(tmp_path)
    assert [(one.state, one.reason) for one in found.series] == [("refused", reason)]
    one = found.series[0]
    assert one.affine_ras is None
    assert one.files == tuple(paths)
    assert "image_" in one.detail and str(tmp_path) not in one.detail


def detail(tmp_path: Path, edit: Callable[[Images], object]) -> str:
    images = series(Grid(slices=10))
    edit(images)
    write(images, tmp_path)
    return scan(tmp_path).series[0].detail


def test_a_gap_names_files_and_distances(tmp_path: Path) -> None:
    words = detail(tmp_path, gap)
    for part in ("image_001.dcm", "image_002.dcm", "6.000 mm", "3.000 mm", "1 slice(s) missing in 1 place(s)"):
        assert part in words


@pytest.mark.parametrize("degrees", [-20.0, 1.5, 14.0])
def test_a_tilt_says_the_angle(tmp_path: Path, degrees: float) -> None:
    assert f"{abs(degrees):.2f} degrees" in detail(tmp_path, lambda images: tilt(images, degrees))


def test_a_conflict_names_both_files(tmp_path: Path) -> None:
    words = detail(tmp_path, conflict)
    assert "image_003.dcm" in words and "image_010.dcm" in words and "pixels" in words


def test_a_shift_names_the_file(tmp_path: Path) -> None:
    assert "image_004.dcm lies 5.00 mm" in detail(tmp_path, lambda images: shift(images[4], 5, 0, 0))


def states(found: Scan) -> list[tuple[str, str | None, int]]:
    return sorted((one.state, one.reason, len(one.files)) for one in found.series)


def made(tmp_path: Path, edit: Callable[[Images], object]) -> Scan:
    images = series(Grid(slices=10), "MR")
    edit(images)
    write(images, tmp_path)
    return scan(tmp_path)


def scouts(images: Images) -> None:
    """Topograms: another matrix, marked as localizers."""
    for orientation in (CORONAL, SAGITTAL):
        scout = series(Grid(orientation, 20, 16, 1, origin=(-40, 10, 60)))[0]
        for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality"):
            setattr(scout, name, getattr(images[0], name))
        scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        images.append(scout)


def test_modalities_and_frames_of_reference_are_volumes_of_their_own(tmp_path: Path) -> None:
    def edit(images: Images) -> None:
        every(images[5:], "FrameOfReferenceUID", generate_uid())
        every(images[8:], "Modality", "PT")

    found = made(tmp_path, edit)
    assert states(found) == [("loaded", None, 2), ("loaded", None, 3), ("loaded", None, 5)]
    assert len({one.case_id for one in found.series}) == 3


def test_scouts_are_a_group_of_their_own(tmp_path: Path) -> None:
    found = made(tmp_path, scouts)
    assert states(found) == [("loaded", None, 10), ("refused", "mixed_orientation", 2)]
    assert any("scout" in note for one in found.series for note in one.notes)
    assert len({one.case_id for one in found.series}) == 2


def test_unmarked_scouts_elsewhere_are_set_aside(tmp_path: Path) -> None:
    def edit(images: Images) -> None:
        scouts(images)
        for image in images[10:]:
            image.ImageType = images[0].ImageType

    found = made(tmp_path, edit)
    assert states(found) == [("loaded", None, 10), ("refused", "single_slice", 1), ("refused", "single_slice", 1)]
    loaded = next(one for one in found.series if one.state == "loaded")
    assert any("2 slice(s) of the series lie in another plane" in note for note in loaded.notes)


def test_a_regular_scout_beside_a_broken_volume_saves_nothing(tmp_path: Path) -> None:
    def edit(images: Images) -> None:
        scouts(images)
        images[10].ImageType = images[0].ImageType
        del images[11], images[4]

    assert states(made(tmp_path, edit)) == [("refused", "mixed_orientation", 10)]


def repeat(name: str, values: tuple[object, ...]) -> Callable[[Images], None]:
    """The series once for each value of a tag."""

    def edit(images: Images) -> None:
        once = list(images)
        images.clear()
        for number, value in enumerate(values):
            for image in once:
                copy = deepcopy(image)
                copy.SOPInstanceUID = generate_uid()
                copy.PixelData = bytes([number]) * len(image.PixelData)
                if value is not None:
                    setattr(copy, name, value)
                images.append(copy)

    return edit


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("EchoTime", ("4.6", "2.3")),
        ("EchoNumbers", (1, 2)),
        ("TemporalPositionIdentifier", (1, 2, 3)),
        ("TriggerTime", ("0", "40", "80")),
        ("AcquisitionNumber", (1, 2)),
        ("DiffusionBValue", (0.0, 1000.0)),
        ("DiffusionGradientOrientation", (None, [1.0, 0.0, 0.0], [0.0, 1.0, 0.0])),
        ("InversionTime", ("100", "400")),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"])),
        ("AcquisitionTime", ("101010.5", "101012")),
        ("ContentTime", ("101010", "101012.25")),
        ("FrameReferenceTime", ("5000", "15000")),
        ("ConvolutionKernel", ("B30f", "B70f")),
        ("SequenceName", ("ep_b0", "ep_b1000#1")),
    ],
)
def test_four_dimensions_become_volumes(tmp_path: Path, name: str, values: tuple[object, ...]) -> None:
    found = made(tmp_path, repeat(name, values))
    assert states(found) == [("loaded", None, 10)] * len(values)
    assert len({one.case_id for one in found.series}) == len(values)
    for one in found.series:
        assert any("split by" in note for note in one.notes)
        assert len({str(_tag(one.files[k], name)) for k in range(10)}) == 1


def _tag(path: Path, name: str) -> object:
    import pydicom

    return pydicom.dcmread(path).get(name)


def test_a_vendors_b_value_splits(tmp_path: Path) -> None:
    def edit(images: Images) -> None:
        repeat("EchoTime", ("5", "5"))(images)
        for number, image in enumerate(images):
            block = image.private_block(0x0019, "SIEMENS MR HEADER", create=True)
            block.add_new(0x0C, "IS", "1000" if number >= 10 else "0")

    found = made(tmp_path, edit)
    assert states(found) == [("loaded", None, 10)] * 2
    assert "b-value" in found.series[0].notes[0]


def test_two_values_together_split(tmp_path: Path) -> None:
    def edit(images: Images) -> None:
        repeat("EchoTime", ("2", "4"))(images)
        repeat("TemporalPositionIdentifier", (1, 2))(images)

    assert states(made(tmp_path, edit)) == [("loaded", None, 10)] * 4


def test_times_of_slices_split_only_where_volumes_follow_each_other(tmp_path: Path) -> None:
    def edit(images: Images) -> None:
        repeat("EchoTime", ("2", "2"))(images)
        for number, image in enumerate(images):
            image.AcquisitionTime = f"1010{number:02d}.5"

    assert states(made(tmp_path / "after", edit)) == [("loaded", None, 10)] * 2

    def overlapping(images: Images) -> None:
        repeat("EchoTime", ("2", "2"))(images)
        for number, image in enumerate(images):
            image.AcquisitionTime = f"1010{2 * (number % 10) + number // 10:02d}.5"

    assert states(made(tmp_path / "overlap", overlapping)) == [("refused", "repeated_positions", 20)]


def test_a_time_that_lacks_a_slice_is_refused_alone(tmp_path: Path) -> None:
    def edit(images: Images) -> None:
        repeat("TemporalPositionIdentifier", (1, 2, 3))(images)
        del images[-1]

    assert states(made(tmp_path, edit)) == [("loaded", None, 10)] * 2 + [("refused", "gap", 9)]


def test_copies_are_dropped(tmp_path: Path) -> None:
    images = series()
    write(images, tmp_path / "a")
    write(images[2:4], tmp_path / "b")
    images[5].compress(RLELossless, generate_instance_uid=False)
    write([images[5]], tmp_path / "c")
    found = scan(tmp_path)
    assert states(found) == [("loaded", None, 9)]
    assert "3 file(s) dropped as exact copies" in found.series[0].notes[0]
    assert len(found.series[0].frames) == 6


def test_the_same_images_under_new_uids_are_dropped(tmp_path: Path) -> None:
    def edit(images: Images) -> None:
        for image in images[3:5]:
            copy = deepcopy(image)
            copy.SOPInstanceUID, copy.InstanceNumber = generate_uid(), 99
            images.append(copy)

    found = made(tmp_path, edit)
    assert states(found) == [("loaded", None, 12)]
    assert "2 image(s) dropped" in found.series[0].notes[0]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda images: images.pop(), ""),
        (lambda images: every(images[:-1], "ImagesInAcquisition", "10") or images.pop(), "speaks of 10 images, 9"),
        (lambda images: images.pop(0), "InstanceNumber begins at 2"),
        (lambda images: images.__delitem__(slice(1, None, 2)), "InstanceNumber leaves out 4 of 1 to 9"),
        (lambda images: images.__delitem__(slice(2, None)), "2 slices"),
        (lambda images: tilt(images, 0.4), "off a regular grid"),
        (lambda images: shift(images[4], 0.15, 0, 0), "0.1"),
        (lambda images: every(images, "LossyImageCompression", "01"), "lossy"),
        (lambda images: shift(images[4], 0.01, 0.01, 0.01), ""),
        (lambda images: tilt(images, 0.07), ""),
        (lambda images: [delattr(image, "FrameOfReferenceUID") for image in images], ""),
        (lambda images: [delattr(image, "InstanceNumber") for image in images], ""),
    ],
)
def test_loaded_with_a_note(tmp_path: Path, edit: Callable[[Images], object], words: str) -> None:
    found = made(tmp_path, edit)
    assert [one.state for one in found.series] == ["loaded"], found.series[0].detail
    assert words in " ".join(found.series[0].notes)
    assert bool(words) == bool(found.series[0].notes)


def test_frames_of_an_enhanced_image_are_judged_too(tmp_path: Path) -> None:
    image = enhanced(Grid(OBLIQUE, slices=10))
    image.PerFrameFunctionalGroupsSequence[4].PlanePositionSequence[0].ImagePositionPatient = [0, 0, 0]
    write([image], tmp_path)
    one = scan(tmp_path).series[0]
    assert one.state == "refused" and "(frame " in one.detail


def test_an_enhanced_frame_without_position(tmp_path: Path) -> None:
    image = enhanced(Grid(AXIAL))
    del image.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence
    write([image], tmp_path)
    one = scan(tmp_path).series[0]
    assert one.reason == "missing_tag" and "frame 4" in one.detail


def test_levels_of_fine_and_jittering_stacks() -> None:
    assert list(levels(np.array([0.0, 0.03, 0.06, 0.03]))) == [0, 1, 2, 1]
    assert list(levels(np.array([0.0, 5.02, 5.0, 0.03]))) == [0, 1, 1, 0]
    assert list(levels(np.array([7.0, 7.0]))) == [0, 0]
