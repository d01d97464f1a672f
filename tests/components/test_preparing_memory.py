"""What preparing a case takes in memory: MONAI's resampling slab by slab gives MONAI's bits in a third of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.networks.layers import AffineTransform
from monai.transforms import Spacing
from monai.transforms.spatial import functional

from segpipe.common.processes import child_environment
from segpipe.components import slab_resampling
from segpipe.components.slab_resampling import SlabAffineTransform
from segpipe.training.memory_rules import PREPARING

GRIDS = [  # source, result, and whether the axes are parallel
    ((17, 23, 9), (30, 11, 21), True),
    ((1, 40, 7), (5, 33, 7), True),
    ((12, 13, 14), (24, 26, 28), True),
    ((19, 8, 22), (27, 31, 6), False),
]


@pytest.mark.parametrize(("source", "result", "parallel"), GRIDS)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_slabs_are_bit_for_bit_what_monai_computes_at_once(
    source: tuple[int, ...], result: tuple[int, ...], parallel: bool, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slab_resampling, "SLAB", 3 * result[1] * result[2])  # so that the last slab is thinner
    random = np.random.default_rng(sum(source))
    matrix = np.diag([*random.uniform(0.3, 2, 3), 1])
    matrix[:3, 3] = random.uniform(-2, 2, 3)
    if not parallel:
        matrix[:3, :3] += random.normal(0, 0.2, (3, 3))
    volume = torch.from_numpy(random.normal(0, 300, (1, 2, *source)).round(1)).permute(0, 1, 2, 4, 3)
    volume = volume.contiguous().permute(0, 1, 2, 4, 3)  # as it lies in a file, not in the order of the axes
    for padding in ("border", "zeros"):
        how = {"normalized": False, "mode": mode, "padding_mode": padding, "align_corners": False}
        expected = AffineTransform(**how)(volume, torch.from_numpy(matrix), result)
        found = SlabAffineTransform(**how)(volume, torch.from_numpy(matrix), result)
        assert found.dtype == torch.float32 and torch.equal(found, expected.float())


def test_monai_resamples_so_in_a_training_and_what_is_no_plain_volume_is_left_to_it() -> None:
    assert functional.AffineTransform is SlabAffineTransform
    image = MetaTensor(torch.arange(60.0).reshape(1, 3, 4, 5), affine=torch.eye(4))
    found = Spacing([0.5, 0.7, 2.0])(image)
    assert found.shape == (1, 5, 5, 3) and found.applied_operations and found.dtype == torch.float32
    flat = torch.arange(12.0)[None, None].reshape(1, 1, 3, 4).requires_grad_()
    how = {"normalized": False, "align_corners": False}
    one, other = (kind(**how)(flat, torch.eye(3), (5, 6)) for kind in (AffineTransform, SlabAffineTransform))
    assert torch.equal(one, other) and other.requires_grad


SHAPE, TO_MM = (256, 256, 120), (0.8, 0.8, 1.6)
PREPARE = """
import json, sys
import torch
from pathlib import Path
from monai.transforms import (
    CropForegroundd, EnsureChannelFirstd, EnsureTyped, LoadImaged, Orientationd, ScaleIntensityRanged, Spacingd
)
from segpipe.components import CaseTransforms, ValidateCased, prepared_cases

torch.set_num_threads(1)
folder, keys = Path(sys.argv[1]), ["image", "label"]

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

def prepare(name):
    transform = CaseTransforms([
        LoadImaged(keys, reader="NibabelReader", image_only=True),
        EnsureChannelFirstd(keys),
        Orientationd(keys, axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
        Spacingd(keys, pixdim=json.loads(sys.argv[2]), mode=["bilinear", "nearest"]),
        CropForegroundd(keys, source_key="image", margin=2, allow_smaller=True),
        ScaleIntensityRanged("image", a_min=-100, a_max=250, b_min=-3.0, b_max=2.5, clip=True),
        EnsureTyped(keys),
        ValidateCased(1, 2),
    ])
    paths = {key: str(folder / f"{name}_{key}.nii.gz") for key in keys}
    return prepared_cases([{"case_id": name, **paths}], transform, store=str(folder / "store"))[0]

prepare("small")
before = kilobytes("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
case = prepare("large")
print(json.dumps([(kilobytes("VmHWM") - before) * 1024, case["image"].numel()]))
"""


@pytest.mark.slow
def test_a_resampled_case_is_prepared_in_the_memory_that_a_plan_foresees(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, shape in (("small", (32, 32, 16)), ("large", SHAPE)):
        image = (random.standard_normal(shape, np.float32) * 20 + 40).astype(np.int16, order="F")
        label = np.zeros(shape, np.uint8, order="F")
        label[5:20, 5:20, 5:10] = 1
        for key, values in (("image", image), ("label", label)):
            affine = np.diag([-0.8, -0.8, 2.0, 1.0])
            nib.save(nib.Nifti1Image(values, affine), tmp_path / f"{name}_{key}.nii.gz")
    words = [sys.executable, "-c", PREPARE, str(tmp_path), json.dumps(TO_MM)]
    done = subprocess.run(words, env=child_environment(), capture_output=True, text=True, check=True)
    peak, voxels = json.loads(done.stdout.splitlines()[-1])
    assert voxels > 1.1 * np.prod(SHAPE), "resampled, and hardly cut"
    assert 8 * voxels < peak < PREPARING * voxels, f"{peak / voxels:.1f} bytes a voxel"
    print(f"{peak / voxels:.1f} bytes a voxel")
