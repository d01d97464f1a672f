"""Processes that compute as trainings do: what is measured beside them is slower, as it will be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from segpipe.common.processes import child_environment, tied

AT_WORK = "at work\n"  # what a process says once it is


@contextmanager
def others_at_work(processes: int, threads: int) -> Iterator[None]:
    """Keep so many processes busy with steps of a convolution.

    Args:
        processes: beside this one; with 0 nothing is done.
        threads: of each.
    """
    words = [sys.executable, "-m", __name__, str(threads)]
    started = [subprocess.Popen(tied(words), env=child_environment(), stdout=subprocess.PIPE) for _ in range(processes)]
    try:
        for process in started:
            if process.stdout is not None:
                process.stdout.readline()
        yield
    finally:
        for process in started:
            process.kill()
            process.communicate()


def _work(threads: int) -> None:
    """Compute until it is killed."""
    import torch

    torch.set_num_threads(threads)
    network = torch.nn.Sequential(torch.nn.Conv3d(16, 32, 3, padding=1), torch.nn.InstanceNorm3d(32), torch.nn.PReLU())
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload, unused-ignore]
    patches = torch.randn(2, 16, 48, 48, 48).to(memory_format=torch.channels_last_3d)
    network(patches).sum().backward()
    sys.stdout.write(AT_WORK)
    sys.stdout.flush()
    while True:
        network(patches).sum().backward()


if __name__ == "__main__":
    _work(int(sys.argv[1]))
