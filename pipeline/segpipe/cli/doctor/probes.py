"""What may be missing, broken or slow, each tried in a process of its own: libraries, and the isolation of a process.

``python -m segpipe.cli.doctor.probes torch`` imports a library and prints what it says of itself as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PATIENCE_S = 120
MODULE = "segpipe.cli.doctor.probes"  # this one, as a process runs it


def try_all(names: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Try them side by side.

    Args:
        names: of `PROBES`; empty for all.

    Returns:
        By name: ``imports``, ``seconds``, ``error`` (None where it imports) and ``facts``.
    """
    chosen = list(names or PROBES)
    with ThreadPoolExecutor(len(chosen)) as pool:
        return dict(zip(chosen, pool.map(_try, chosen), strict=True))


def _try(name: str) -> dict[str, Any]:
    package = str(Path(__file__).resolve().parents[3])
    paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", MODULE, name],
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
        )
    except subprocess.TimeoutExpired:
        return _failed(f"it did not end within {PATIENCE_S} s", began)
    if done.returncode < 0:
        return _failed(f"the process crashed with {signal.Signals(-done.returncode).name}", began)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        return _failed(f"the process ended with code {done.returncode}", began)
    seconds = round(time.monotonic() - began, 1)
    return {"imports": answer["error"] is None, "seconds": seconds, **answer}


def _failed(why: str, began: float) -> dict[str, Any]:
    return {"imports": False, "seconds": round(time.monotonic() - began, 1), "error": why, "facts": {}}


def _torch() -> dict[str, Any]:
    import torch

    return {
        "cuda": torch.version.cuda,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpus": [_gpu(torch.cuda.get_device_properties(index)) for index in range(torch.cuda.device_count())],
    }


def _gpu(properties: Any) -> dict[str, Any]:
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
    }


def _monai() -> dict[str, Any]:
    import monai.bundle
    import monai.networks.nets  # noqa: F401 - what most of it hangs on

    return {}


def _openvino() -> dict[str, Any]:
    import openvino

    return {"devices": list(openvino.Core().available_devices)}


def _dicom() -> dict[str, Any]:
    from segpipe.dicom import decodable

    return {"codecs": decodable()}


def _signing() -> dict[str, Any]:
    import model_signing.signing
    import model_signing.verifying  # noqa: F401 - both, as `segpipe bundle` does

    return {}


def _isolation() -> dict[str, Any]:
    import tempfile

    from segpipe.bundle import give_up_files, give_up_network

    network = give_up_network()
    files = give_up_files((), Path(tempfile.gettempdir()))
    return {"without_network": network or "possible", "without_files": files or "possible"}


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "torch": _torch,
    "monai": _monai,
    "openvino": _openvino,
    "dicom": _dicom,
    "model-signing": _signing,
    "isolation": _isolation,
}


def main(name: str) -> None:
    """Try one, and print its facts or why it does not work; what it prints itself is dropped."""
    answer = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    document: dict[str, Any] = {"error": None, "facts": {}}
    try:
        document["facts"] = PROBES[name]()
    except Exception as error:  # noqa: BLE001 - a broken library raises anything
        document["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    with os.fdopen(answer, "w") as stream:
        json.dump(document, stream)


if __name__ == "__main__":
    main(sys.argv[1])
