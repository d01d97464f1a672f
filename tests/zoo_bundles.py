"""Three bundles in the manner of MONAI's model zoo, with small networks of generated weights."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

LABELS = {"0": "background", "1": "spleen", "2": "tumour"}
UNET = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [4, 8],
    "strides": [2],
    "norm": "batch",
}
NET = '''"""A network of the bundle's own."""

import torch


class Net(torch.nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = torch.nn.Conv3d(1, channels, 3, padding=1)
        self.last = torch.nn.Conv3d(channels, 3, 1)

    def forward(self, x):
        return self.last(torch.sin(self.first(x)))
'''
TRANSFORMS = '''"""A transform of the bundle's own."""

from monai.transforms import MapTransform


class Halved(MapTransform):
    def __call__(self, data):
        return {**data, **{key: data[key] / 2 for key in self.keys}}
'''


def glob_and_handlers(root: Path) -> Path:
    """Imports, a glob listing, `setattr`, handlers that load the weights, the image's key as a reference."""
    config = {
        "imports": ["$import glob", "$import os"],
        "bundle_root": "/workspace/bundle",
        "image_key": "image",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "/workspace/data/Task09_Spleen",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.nii.gz')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": UNET,
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "@image_key"},
                {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
                {"_target_": "Orientationd", "keys": "@image_key", "axcodes": "RAS"},
                {"_target_": "Spacingd", "keys": "@image_key", "pixdim": [2.0, 2.0, 2.5], "mode": "bilinear"},
                {
                    "_target_": "ScaleIntensityRanged",
                    "keys": "@image_key",
                    "a_min": -57,
                    "a_max": 164,
                    "b_min": 0,
                    "b_max": 1,
                    "clip": True,
                },
                {"_target_": "EnsureTyped", "keys": "@image_key"},
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": 4,
        },
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "sw_batch_size": 4, "overlap": 0.5},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "@image_key",
                    "meta_key_postfix": "meta_dict",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {"_target_": "SaveImaged", "keys": "pred", "meta_keys": "pred_meta_dict", "output_dir": "@output_dir"},
            ],
        },
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "_disabled_": "$not os.path.exists(@bundle_root + '/models/model.pt')",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
            },
            {"_target_": "StatsHandler", "iteration_log": False},
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "amp": True,
        },
        "initialize": ["$setattr(torch.backends.cudnn, 'benchmark', True)"],
        "run": ["$@evaluator.run()"],
    }
    _metadata(root)
    (root / "configs/inference.json").write_text(json.dumps(config))
    _weights(root / "models/model.pt", _monai_net(UNET))
    return root


def yaml_with_macros(root: Path) -> Path:
    """YAML, macros and relative ids, metadata in the config, other ids, nearest inversion, a loader that is called."""
    definition = {
        "_target_": "BasicUNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "features": [4, 4, 8, 8, 8, 4],
        "out_channels": "$len(@_meta_::network_data_format::outputs::pred::channel_def)",
    }
    config: dict[str, Any] = {
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "data",
        "device": "cpu",
        "files": {
            "_target_": "torch.utils.data.datapipes.iter.FileLister",
            "root": "@dataset_dir",
            "masks": "*.nii.gz",
        },
        "model": {"definition": definition, "on_device": "$@::definition.to(@device)"},
        "steps": {
            "read": [
                {"_target_": "LoadImaged", "keys": ["image"], "reader": "NibabelReader"},
                {"_target_": "EnsureChannelFirstd", "keys": ["image"]},
            ],
            "prepare": [
                {"_target_": "Spacingd", "keys": ["image"], "pixdim": "@spacing", "mode": "bilinear"},
                {"_target_": "ScaleIntensityd", "keys": ["image"]},
            ],
        },
        "spacing": [2.0, 2.0, 2.0],
        "preprocessing": {"_target_": "Compose", "transforms": "$@steps::read + @steps::prepare"},
        "sw": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32], "overlap": 0.25},
        "undo": {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "meta_keys": "pred_meta_dict",
            "orig_meta_keys": "image_meta_dict",
            "nearest_interp": True,
            "to_tensor": True,
        },
        "discrete": {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        "after": [
            "%discrete",
            "%undo",
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "trans"},
        ],
        "checkpointloader": {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@model::on_device"},
            "map_location": "@device",
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "network": "@model::on_device",
            "inferer": "@sw",
            "postprocessing": {"_target_": "Compose", "transforms": "@after"},
            "val_data_loader": {
                "_target_": "ThreadDataLoader",
                "batch_size": 1,
                "num_workers": 0,
                "dataset": {
                    "_target_": "CacheDataset",
                    "data": "$[{'image': p} for p in sorted(@files)]",
                    "transform": "@preprocessing",
                    "progress": False,
                },
            },
        },
        "initialize": ["$monai.utils.set_determinism(seed=123)", "$@checkpointloader(@evaluator)"],
        "run": "$@evaluator.run()",
    }
    _metadata(root)
    (root / "configs/inference.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    _weights(root / "models/model.pt", _monai_net({**definition, "out_channels": 3}))
    return root


def own_scripts(root: Path) -> Path:
    """A network and a transform of the bundle's own, and a training checkpoint under another name."""
    import torch

    config = {
        "imports": ["$import glob", "$from scripts.transforms import Halved"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "data",
        "device": "$torch.device('cpu')",
        "modelname": "model_final.pt",
        "checkpoint": "$@bundle_root + '/models/' + @modelname",
        "network_def": {"_target_": "scripts.net.Net", "channels": 4},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                "$Halved(keys='image')",
                {"_target_": "scripts.transforms.Halved", "keys": ["image"]},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': i} for i in sorted(glob.glob(@dataset_dir + '/*.nii.gz'))]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "separate_folder": False},
            ],
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": [
                {"_target_": "CheckpointLoader", "load_path": "@checkpoint", "load_dict": {"model": "@network"}}
            ],
        },
        "run": ["$@evaluator.run()"],
    }
    _metadata(root)
    (root / "configs/inference.json").write_text(json.dumps(config))
    (root / "scripts").mkdir()
    for name, text in {"__init__.py": "", "net.py": NET, "transforms.py": TRANSFORMS}.items():
        (root / "scripts" / name).write_text(text)
    torch.manual_seed(5)
    state = {
        "first.weight": torch.randn(4, 1, 3, 3, 3) / 50,
        "first.bias": torch.randn(4),
        "last.weight": torch.randn(3, 4, 1, 1, 1),
        "last.bias": torch.zeros(3),
    }
    torch.save({"model": state, "epoch": 3}, root / "models/model_final.pt")
    return root


NEEDED = {
    glob_and_handlers: ("glob", "os", "glob.glob", "genericpath.exists", "setattr", "torch.backends.cudnn"),
    yaml_with_macros: ("@checkpointloader",),
    own_scripts: (
        "glob",
        "glob.glob",
        "scripts.transforms.Halved",
        "scripts/__init__.py",
        "scripts/net.py",
        "scripts/transforms.py",
        "scripts.net.Net",
    ),
}


def _metadata(root: Path) -> None:
    for folder in ("configs", "models", "docs"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    tensor = {"type": "image", "spatial_shape": [32, 32, 32], "dtype": "float32", "is_patch_data": True}
    image = {**tensor, "num_channels": 1, "channel_def": {"0": "image"}}
    document = {
        "name": root.name,
        "version": "0.5.8",
        "changelog": {"0.5.8": "new naming", "0.1.0": "first"},
        "monai_version": "1.4.0",
        "pytorch_version": "2.4.0",
        "numpy_version": "1.24.4",
        "required_packages_version": {"nibabel": "5.2.1", "pytorch-ignite": "0.4.11"},
        "network_data_format": {
            "inputs": {"image": image},
            "outputs": {"pred": {**tensor, "num_channels": 3, "channel_def": LABELS}},
        },
    }
    (root / "configs/metadata.json").write_text(json.dumps(document))
    (root / "LICENSE").write_text(f"Apache-2.0; monai {version('monai')}\n")
    (root / "docs/README.md").write_text("# A model\n")


def _monai_net(definition: dict[str, Any]) -> Any:
    import torch
    from monai.bundle import ConfigParser

    torch.manual_seed(5)
    return ConfigParser({"net": definition}).get_parsed_content("net")


def _weights(path: Path, network: Any) -> None:
    """Of a network that spreads its labels over any image."""
    import torch

    state = {
        name: value * 3 if name.endswith("weight") and value.ndim == 5 else value
        for name, value in network.state_dict().items()
    }
    torch.save(state, path)
