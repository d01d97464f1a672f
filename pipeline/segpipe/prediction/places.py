"""What a worker is given of this machine: the bundle and the cases to read, a folder of results to write, a cache.

It gets no more of the environment than what libraries compute by, and a home and a temporary folder of its own, which
are gone when it ends.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.bundle import Bundle
from segpipe.common.files import cache_folder, network_cache
from segpipe.common.isolation import import_path
from segpipe.common.processes import child_environment
from segpipe.prediction.cases import InputCase

PRIVATE = "~worker"  # no case has such an id
MOST_FILES = 20_000  # named singly; of more, the folders that they lie in
_KEPT = """
    PATH LANG LANGUAGE TZ TERM LD_ LC_ PYTHON SEGPIPE_ OMP_ KMP_ GOMP_ MKL_ OPENBLAS_ BLIS_ NUMEXPR_ ITK_ CUDA_ NVIDIA_
    NCCL_ TORCH_ PYTORCH_ ATEN_ DNNL_ ONEDNN_ OV_ OPENVINO_ MONAI_ MALLOC_ GLIBC_ SYSTEMROOT
"""
KEPT = tuple(_KEPT.split())  # variables that begin so


@dataclass(frozen=True)
class Places:
    """What a worker may read and write.

    Attributes:
        work: folder of the cases under way, in which it writes.
        readable: bundles, and the files of cases.
        caches: folders of their converted networks.
        gpu: whether it may use GPUs.
        is_required: whether it is not to run where no layer of isolation can be had.
    """

    work: Path
    readable: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()
    gpu: bool = False
    is_required: bool = False

    @classmethod
    def of(cls, work: Path, bundles: Sequence[Bundle], cases: Iterable[InputCase], device: str) -> Places:
        """Return what a batch of cases takes."""
        files = [*dict.fromkeys(path.absolute() for case in cases for path in case.files)]
        if len(files) > MOST_FILES:
            files = [*dict.fromkeys(path.parent for path in files)]
        readable = [path for bundle in bundles for path in (bundle.root, bundle.weights)] + files
        return cls(
            work.absolute(),
            tuple(map(str, readable)),
            tuple(str(network_cache(bundle.sha256)) for bundle in bundles),
            device != "cpu",
            any(bundle.is_foreign and not bundle.policy.allow_unisolated for bundle in bundles),
        )

    @property
    def private(self) -> Path:
        """The folder that is its home and holds its temporary files."""
        return self.work / PRIVATE

    def make(self) -> None:
        """Make the folders that are not there; a cache that cannot be made is done without."""
        self.private.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in map(Path, self.caches):
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def request(self) -> dict[str, Any]:
        """What `segpipe.common.isolation` is asked for."""
        return {
            "work": str(self.private),
            "readable": self.readable,
            "writable": [str(self.work), *self.caches],
            "gpu": self.gpu,
            "sys_path": import_path(),
            "then": "segpipe.prediction.worker:main",
        }

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the process."""
        kept = {name: value for name, value in child_environment().items() if name.startswith(KEPT)}
        home = dict.fromkeys(("HOME", "TMPDIR", "MPLCONFIGDIR", "XDG_CACHE_HOME"), str(self.private))
        nobody = dict.fromkeys(("USER", "LOGNAME"), "nobody")  # else libraries ask /etc/passwd
        return {**kept, **home, **nobody, "SEGPIPE_CACHE": str(cache_folder().absolute())}

    @property
    def command(self) -> list[str]:
        """The program."""
        return [sys.executable, "-m", "segpipe.common.isolation"]
