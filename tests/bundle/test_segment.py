"""Bundle.segment: one scan through all doors is one label map, that of `segpipe predict`; nothing doubtful comes in."""

from __future__ import annotations

import gc
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy as copy_of
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from small_bundle import change_json, copy, small_bundle

import segpipe
from dicom import make
from segpipe.cli.app import run
from segpipe.common.result_folder import RESULT, SEGMENTATION
from segpipe.errors import OK, SOME_HELD, DataError, RefusedError, UsageError
from tiny_bundle import TILTED, write_bundle, write_scan

ROOT = Path(__file__).parents[2]
SPACED = [
    {"_target_": "LoadImaged", "keys": "image", "image_only": True},
    {"_target_": "EnsureChannelFirstd", "keys": "image"},
    {"_target_": "Spacingd", "keys": "image", "pixdim": [2.5, 2.5, 2.5]},
    {"_target_": "EnsureTyped", "keys": "image", "dtype": "float32"},
]


@pytest.fixture(scope="module")
def spaced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("spaced") / "b", deterministic=SPACED)


def predicted(bundle: Path, image: Path, out: Path) -> tuple[Any, dict[str, Any]]:
    """The label map of `segpipe predict`, and the case's result.json."""
    import json

    assert run(["predict", str(bundle), str(image), str(out)]) in (OK, SOME_HELD)
    (result,) = out.glob(f"*/{RESULT}")
    return nib.load(result.with_name(SEGMENTATION)), json.loads(result.read_text())


def doors(path: Path) -> dict[str, tuple[Any, dict[str, Any]]]:
    """The image of a file as each kind that is taken."""
    image = nib.load(path)
    array = np.asarray(image.dataobj)
    return {
        "str": (str(path), {}),
        "Path": (path, {}),
        "list": ([path], {}),
        "nibabel of a file": (image, {}),
        "nibabel in memory": (nib.Nifti1Image(array, image.affine), {}),
        "SimpleITK": (SimpleITK.ReadImage(str(path)), {}),
        "numpy": (array, {"affine_ras": image.affine}),
        "numpy, other order and type": (array.astype("f8")[::-1, ::-1][::-1, ::-1], {"affine_ras": image.affine}),
    }


def check_all_doors(root: Path, path: Path, tmp_path: Path) -> None:
    expected, result = predicted(root, path, tmp_path / "out")
    bundle = segpipe.open_bundle(root)
    for name, (image, more) in doors(path).items():
        found = bundle.segment(image, **more)
        np.testing.assert_array_equal(found.array, np.asarray(expected.dataobj), err_msg=name)
        np.testing.assert_allclose(found.affine_ras, expected.affine, atol=1e-4, err_msg=name)
        assert found.volumes_ml == pytest.approx(result["volumes_ml"], rel=1e-5), name
        assert found.flags == result["flags"] and found.voxels == result["voxels"], name
        saved = nib.load(found.save(tmp_path / "saved" / "labels.nii.gz"))
        np.testing.assert_array_equal(np.asarray(saved.dataobj), found.array)
        np.testing.assert_allclose(saved.affine, found.affine_ras, atol=1e-4)


@pytest.mark.usefixtures("one_worker")
def test_one_scan_through_all_doors(spaced: Path, tmp_path: Path) -> None:
    check_all_doors(spaced, write_scan(tmp_path / "scan.nii.gz", shape=(14, 11, 9)), tmp_path)


@pytest.mark.slow
def test_one_scan_through_all_doors_of_the_shipped_bundle(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    shutil.copy(ROOT / "bundles/hippocampus_mri/golden/images/image.nii.gz", path)
    check_all_doors(ROOT / "bundles/hippocampus_mri", path, tmp_path)


@pytest.mark.usefixtures("one_worker")
def test_one_series_through_all_doors_and_into_dicom(spaced: Path, tmp_path: Path) -> None:
    (file, *_) = make.write(make.series(make.Grid(orientation=make.OBLIQUE)), tmp_path / "series")
    expected, result = predicted(spaced, tmp_path / "series", tmp_path / "out")
    bundle = segpipe.open_bundle(spaced)
    volume = segpipe.read_dicom(tmp_path / "series")
    for image in (tmp_path / "series", str(file), volume, [volume]):
        found = bundle.segment(image)
        np.testing.assert_array_equal(found.array, np.asarray(expected.dataobj))
        np.testing.assert_allclose(found.affine_ras, expected.affine, atol=1e-4)
        assert found.volumes_ml == result["volumes_ml"] and found.flags == result["flags"]
    assert repr(found).startswith("Segmentation(") and "bright" in repr(found) and len(repr(found)) < 100
    (seg,) = tmp_path.glob("out/*/seg.dcm")
    written = found.save(tmp_path / "seg.dcm", format="seg")
    assert pydicom.dcmread(written).SOPInstanceUID == pydicom.dcmread(seg).SOPInstanceUID
    for format in ("labelmap", "rtstruct", "sr"):
        assert pydicom.dcmread(found.save(tmp_path / f"{format}.dcm", format=format)).Modality
    report = pydicom.dcmread(tmp_path / "sr.dcm")
    assert pydicom.dcmread(seg).SOPInstanceUID in str(report)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    volume.series.files[2].unlink()
    with pytest.raises(DataError, match="cannot be written so") as caught:
        found.save(tmp_path / "seg.dcm", format="seg")
    assert caught.value.path == str(volume.series.files[2])
    assert "cannot be read again: file 3 of" in str(caught.value.found) and "No such file" in str(caught.value.found)


def test_a_series_of_another_modality_is_refused_unless_it_is_asked_for(tiny_bundle: Path, tmp_path: Path) -> None:
    root = copy(tiny_bundle, tmp_path / "b")

    def state_mr(metadata: Any) -> None:
        metadata["network_data_format"]["inputs"]["image"]["modality"] = "MRI"

    change_json(root / "configs/metadata.json", state_mr)
    make.write(make.series(), tmp_path / "ct")
    bundle = segpipe.open_bundle(root)
    volume = segpipe.read_dicom(tmp_path / "ct")
    for image in (tmp_path / "ct", volume, [volume]):
        with pytest.raises(DataError, match="another modality") as caught:
            bundle.segment(image)
        assert (caught.value.found, caught.value.expected) == ("CT", "MR")
        assert bundle.segment(image, modality=["ct"]).notes == volume.notes
    with pytest.raises(DataError, match="another modality"):
        segpipe.open_bundle(tiny_bundle).segment(volume, modality="MR,PT")


def test_what_was_resampled_is_not_written_as_dicom(tiny_bundle: Path, tmp_path: Path) -> None:
    make.write(make.tilted(), tmp_path / "tilted")
    volume = segpipe.read_dicom(tmp_path / "tilted", repair="tilt")
    found = segpipe.open_bundle(tiny_bundle).segment(volume)
    assert found.notes == volume.notes and any("tilt" in note for note in found.notes)
    with pytest.raises(DataError, match="was resampled to a regular grid"):
        found.save(tmp_path / "seg.dcm", format="seg")


def test_a_file_that_does_not_say_how_it_lies_comes_not_through_simpleitk(tiny_bundle: Path, tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOXELS, None)
    image.header.set_zooms((1, 1, 2))
    nib.save(image, tmp_path / "a.nii.gz")
    bundle = segpipe.open_bundle(tiny_bundle)
    with pytest.raises(DataError, match="does not say how it lies"):
        bundle.segment(SimpleITK.ReadImage(str(tmp_path / "a.nii.gz")))
    for known in (tmp_path / "a.nii.gz", nib.load(tmp_path / "a.nii.gz")):
        assert bundle.segment(known).flags["orientation_unknown"]


@pytest.mark.slow
def test_the_stock_route_is_given_files(tmp_path: Path) -> None:
    root = write_bundle(
        tmp_path / "b", deterministic=[*SPACED[:2], {"_target_": "Rotate90d", "keys": "image", "k": 2}, SPACED[3]]
    )
    path = write_scan(tmp_path / "scan.nii.gz")
    expected, result = predicted(root, path, tmp_path / "out")
    assert result["route"] == "stock"
    for image, more in doors(path).values():
        found = segpipe.open_bundle(root, allow_unisolated=True).segment(image, **more)
        np.testing.assert_array_equal(found.array, np.asarray(expected.dataobj))


@pytest.mark.slow
def test_the_stock_route_is_given_nifti_of_another_format(tmp_path: Path) -> None:
    turned = {"_target_": "Rotate90d", "keys": "image", "k": 2}
    root = write_bundle(tmp_path / "b", deterministic=[*SPACED[:2], turned, SPACED[3]])
    path = write_scan(tmp_path / "scan.nii.gz")
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(path)), str(tmp_path / "scan.nrrd"))
    expected, result = predicted(root, path, tmp_path / "out")
    found, _ = predicted(root, tmp_path / "scan.nrrd", tmp_path / "other")
    assert result["route"] == "stock"
    assert np.asarray(expected.dataobj).any()
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))


def test_channels_are_a_list_or_the_last_axis(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "b", channels=("T1", "T2"))
    paths = [write_scan(tmp_path / f"a_000{channel}.nii.gz", channel) for channel in range(2)]
    bundle = segpipe.open_bundle(root)
    expected = bundle.segment(paths).array
    arrays = [np.asarray(nib.load(path).dataobj) for path in paths]
    for image in ([nib.load(path) for path in paths], [paths[0], nib.load(paths[1])]):
        np.testing.assert_array_equal(bundle.segment(image).array, expected)
    for image in (arrays, np.stack(arrays, -1)):
        np.testing.assert_array_equal(bundle.segment(image, affine_ras=TILTED).array, expected)
    moved = nib.Nifti1Image(arrays[1], TILTED + np.eye(4) * [0, 0, 0, 0] + np.array([[0, 0, 0, 1]] + [[0] * 4] * 3))
    with pytest.raises(DataError, match="different grids"):
        bundle.segment([paths[0], moved])
    with pytest.raises(DataError, match="number of channels"):
        bundle.segment(paths[0])


def affine(**changes: float) -> np.ndarray:
    matrix = TILTED.copy()
    for place, value in changes.items():
        matrix[int(place[1]), int(place[2])] = value
    return matrix


VOXELS = np.random.default_rng(0).integers(0, 200, (12, 10, 9)).astype(np.int16)
NAN = np.where(VOXELS > 190, np.nan, VOXELS)


@pytest.mark.parametrize(
    ("array", "matrix", "words"),
    [
        (VOXELS, None, "does not say where it lies"),
        (VOXELS, np.zeros((4, 4)), "affine cannot be used"),
        (VOXELS, affine(a00=np.nan), "affine cannot be used"),
        (VOXELS, TILTED[:3], "affine cannot be used"),
        (VOXELS, TILTED.T, "affine cannot be used"),
        (VOXELS * 1j, TILTED, "not plain numbers"),
        (VOXELS > 9, TILTED, "not plain numbers"),
        (VOXELS.astype(object), TILTED, "not plain numbers"),
        (NAN, TILTED, "not finite"),
        (VOXELS * 0, TILTED, "constant"),
        (VOXELS[..., 0], TILTED, "not a volume"),
        (np.stack([VOXELS] * 3, -1), TILTED, "more than three dimensions"),
        (np.ma.masked_array(VOXELS, VOXELS > 3), TILTED, "no image of a kind"),
        (VOXELS[:0], TILTED, "no voxels"),
    ],
)
def test_arrays_that_are_doubtful_are_refused(array: Any, matrix: Any, words: str, tiny_bundle: Path) -> None:
    with pytest.raises((DataError, UsageError), match=words):
        segpipe.open_bundle(tiny_bundle).segment(array, affine_ras=matrix)


def odd_forms() -> nib.Nifti1Image:
    image = nib.Nifti1Image(VOXELS, TILTED)
    image.set_sform(TILTED, 1)
    image.set_qform(affine(a03=5), 1)
    return image


def odd_header() -> nib.Nifti1Image:
    image = nib.Nifti1Image(VOXELS, TILTED)
    image.header.set_sform(affine(a03=5), 1)
    image.header.set_qform(affine(a03=5), 1)
    return image


def in_metres() -> nib.Nifti1Image:
    image = nib.Nifti1Image(VOXELS, TILTED)
    image.header.set_xyzt_units("meter")
    return image


COLOUR = SimpleITK.GetImageFromArray(np.stack([VOXELS] * 3, -1), isVector=True)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (odd_forms(), "qform and sform of the header disagree"),
        (odd_header(), "affine and header of the image disagree"),
        (in_metres(), "not in mm"),
        (nib.Nifti1Image(NAN, TILTED), "not finite"),
        (nib.Nifti1Image(VOXELS.astype(np.complex64), TILTED), "not plain numbers"),
        (nib.Nifti1Image(VOXELS, None), "affine cannot be used"),
        (nib.MGHImage(VOXELS, TILTED), "not a NIfTI image"),
        (COLOUR, "not plain numbers"),
        (SimpleITK.GetImageFromArray(VOXELS.astype(np.complex64)), "not plain numbers"),
        (SimpleITK.GetImageFromArray(VOXELS[0]), "not a volume"),
        (SimpleITK.GetImageFromArray(NAN), "not finite"),
        ("nowhere.nii.gz", "no such file"),
        ("nowhere", "no such file or folder"),
        ("", "not a path"),
        (__file__, "neither a DICOM folder nor one of its files"),
        (["a.gipl", "b.vtk"], "a channel is not a file of an image"),
        ([], "there is no image"),
        (7, "no image of a kind"),
        (None, "no image of a kind"),
    ],
)
def test_images_that_are_doubtful_are_refused(image: Any, words: str, tiny_bundle: Path) -> None:
    with pytest.raises((DataError, UsageError), match=words):
        segpipe.open_bundle(tiny_bundle).segment(image)


def test_an_affine_belongs_to_an_array_and_options_are_judged(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = segpipe.open_bundle(tiny_bundle)
    path = write_scan(tmp_path / "a.nii.gz")
    with pytest.raises(UsageError, match="belongs to a numpy array"):
        bundle.segment(path, affine_ras=np.eye(4))
    options: Any
    for options, words in (
        ({"mirror": "w"}, "no such axis"),
        ({"runtime": "x"}, "no such runtime"),
        ({"max_memory": "much"}, "not an amount"),
        ({"device": "cuda:7"}, "device"),
        ({"device": 0}, "no such device"),
        ({"threads": 0}, "threads"),
        ({"threads": "2"}, "threads is not a whole number"),
        ({"mirror": 1}, "not names"),
        ({"modality": 1}, "not names"),
    ):
        with pytest.raises(UsageError, match=words):
            bundle.segment(path, **options)
    for name, near in (
        ("colour", None),
        ("devcie", "did you mean 'device'?"),
        ("afine_ras", "did you mean 'affine_ras'?"),
    ):
        with pytest.raises(UsageError, match="no such option") as caught:
            bundle.segment(path, **{name: 1})
        assert (caught.value.found, caught.value.hint) == (name, near)
    for matrix in ("RAS", [[1, 0], [0]], np.eye(4) * 1j):
        with pytest.raises(UsageError, match="not a matrix of numbers"):
            bundle.segment(VOXELS, affine_ras=matrix)
    with pytest.raises(DataError, match="affine cannot be used") as unusable:
        bundle.segment(VOXELS, affine_ras=affine(a33=2))
    assert "2." in str(unusable.value.found).splitlines()[3]
    assert not np.array_equal(np.array(VOXELS), bundle.segment(VOXELS, affine_ras=TILTED).array)
    before = VOXELS.astype(np.float32)
    bundle.segment(before, affine_ras=TILTED)
    np.testing.assert_array_equal(before, VOXELS)  # the caller's array is left alone


def test_a_label_map_is_saved_only_as_what_it_can_be(tiny_bundle: Path, tmp_path: Path) -> None:
    found = segpipe.open_bundle(tiny_bundle).segment(write_scan(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(found.mask("bright"), found.array == 1)
    with pytest.raises(UsageError, match="no such label"):
        found.mask("liver")
    with pytest.raises(UsageError, match="no such format"):
        found.save(tmp_path / "x.nrrd", format="nrrd")
    with pytest.raises(UsageError, match="not a NIfTI file"):
        found.save(tmp_path / "x.png")
    with pytest.raises(UsageError, match="not a DICOM file"):
        found.save(tmp_path / "x.nii.gz", format="seg")
    with pytest.raises(DataError, match="cannot be written so") as caught:
        found.save(tmp_path / "x.dcm", format="seg")
    assert "source is NIfTI" in str(caught.value) and "always can be written" in str(caught.value)
    assert found.notes == ()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write"):
        found.save(tmp_path / "file" / "x.nii")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "file"]


def test_nothing_of_a_bundle_runs_that_does_not_pass(tmp_path: Path) -> None:
    from segpipe.bundle.vet import write_sums

    root = copy(small_bundle(tmp_path / "good"), tmp_path / "bad")
    payload = f"$open({str(tmp_path / 'executed')!r}, 'w').close()"
    change_json(root / "configs/inference.json", lambda config: config.update(initialize=[payload]))
    write_sums(root)
    for image in (write_scan(tmp_path / "a.nii.gz"), "nowhere.nii.gz", 7):
        with pytest.raises(RefusedError, match="static checks"):
            segpipe.open_bundle(root).segment(image)
        with pytest.raises(RefusedError, match="static checks"):
            segpipe.open_bundle(root, allow=["io.open"]).segment(image)
    assert not (tmp_path / "executed").exists()
    (root / "LICENSE").unlink()
    with pytest.raises(RefusedError, match="not as it was exported"):
        segpipe.open_bundle(root)


def test_a_bundle_that_changes_after_it_was_opened_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "b"))
    bundle = segpipe.open_bundle(root)
    (root / "configs/more.json").write_text("{}")
    with pytest.raises(RefusedError, match="changed while it was opened"):
        bundle.segment(write_scan(tmp_path / "a.nii.gz"))


def test_a_zip_file_stays_unpacked_while_its_bundle_is_in_use(tiny_bundle: Path, tmp_path: Path) -> None:
    packed = shutil.make_archive(str(tmp_path / "b"), "zip", tiny_bundle)
    bundle = segpipe.open_bundle(packed)
    root = bundle.root
    path = write_scan(tmp_path / "a.nii.gz")
    expected = segpipe.open_bundle(tiny_bundle).segment(path).array
    np.testing.assert_array_equal(bundle.segment(path).array, expected)
    del bundle
    gc.collect()
    assert not root.exists()


def test_threads_take_turns_and_copies_leave_the_model(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = segpipe.open_bundle(tiny_bundle)
    path = write_scan(tmp_path / "a.nii.gz")
    bundles = [bundle, copy_of(bundle), pickle.loads(pickle.dumps(bundle))]
    with ThreadPoolExecutor(4) as pool:
        (first, *others) = pool.map(lambda _: bundle.segment(path, threads=1).array, range(8))
    for array in others:
        np.testing.assert_array_equal(array, first)
    for member in [*bundles, copy_of(bundle), pickle.loads(pickle.dumps(bundle))]:
        assert member == bundle
        np.testing.assert_array_equal(member.segment(path, threads=1).array, first)


def test_a_copy_keeps_an_unpacked_folder(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = segpipe.open_bundle(shutil.make_archive(str(tmp_path / "b"), "zip", tiny_bundle))
    copied = copy_of(bundle)
    del bundle
    gc.collect()
    assert copied.segment(write_scan(tmp_path / "a.nii.gz")).voxels
