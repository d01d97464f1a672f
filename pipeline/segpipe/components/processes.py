"""The processes of a data-parallel training: how they join, and what means the same in several as in one.

Each has a part of every batch. `total` sums over the parts, so that a loss of sums is that of the whole batch, in each
process; its gradient is summed as well, and the mean that DistributedDataParallel takes of all gradients gives back the
factor. Where no gradient is wanted, as in validation, each process has cases of its own, and nothing is summed.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import ignite.distributed as idist
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from segpipe.errors import UsageError

GLOO_ENDS_S = 0.5  # its threads have microseconds of work left, and may have to wait for a core
PATIENCE = timedelta(hours=2)  # with a process that reads or validates for long; of one that died others know at once
T = TypeVar("T")


def process_count() -> int:
    """Return how many processes train together."""
    return int(idist.get_world_size())


def process_number() -> int:
    """Return which of them this one is, from 0; the first writes all files."""
    return int(idist.get_rank())


def join_processes(device: Any = "cpu") -> None:
    """Join the processes that ``torchrun`` or ``segpipe train --processes`` started; nothing where there is one.

    Args:
        device: that each computes on; of ``cuda`` each takes one of its machine.

    Raises:
        UsageError: there is no GPU, or fewer than processes.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or dist.is_initialized():
        return
    local = int(os.environ.get("LOCAL_RANK", 0))
    if "SLURM_JOB_ID" in os.environ:  # Ignite asks Slurm, which knows of torchrun alone
        os.environ["SLURM_LOCALID"] = str(local)
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        require_gpus("cuda", int(os.environ.get("LOCAL_WORLD_SIZE", local + 1)))
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)


def require_gpus(device: Any, processes: int = 1) -> None:
    """Refuse a device of CUDA that this machine lacks, before a network or NCCL asks for it.

    Args:
        device: to train on.
        processes: of this machine; of several each has a GPU of its own.

    Raises:
        UsageError: there is no GPU, or fewer than processes.

    >>> require_gpus("cpu", 2)
    """
    if torch.device(device).type != "cuda":
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
        why = "built without CUDA" if torch.version.cuda is None else "CUDA_VISIBLE_DEVICES is empty" if hidden else ""
        raise UsageError(
            "the training is for a GPU, and there is none that PyTorch can use",
            found=f"PyTorch {torch.__version__}, {why or 'no device'}",
            expected=f"{processes} of CUDA",
            hint="a new run is trained on the CPU with --runtime cpu; one that was begun goes on where there is a GPU; "
            "a job gets one with `segpipe submit --gpus 1`",
        )
    if processes > count:
        raise UsageError(
            "there are fewer GPUs than processes",
            found=f"{count} of these",
            expected=f"{processes}, one for each",
            hint="start fewer processes, or train on the CPU: --runtime cpu",
        )


def leave_processes() -> None:
    """End what `join_processes` began.

    DistributedDataParallel keeps the threads of Gloo alive to the end of the process. A finished process was once taken
    down there (SIGABRT, "terminate called without an active exception"), most likely by one of them that took Python's
    lock to let go of its last tensor when Python was at its end already: it is given the time.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(GLOO_ENDS_S)


def data_parallel(network: torch.nn.Module) -> torch.nn.Module:
    """Return the network with gradients that are the mean over all processes; itself where there is one.

    Raises:
        UsageError: it has batch normalisation on a CPU.
    """
    if process_count() == 1:
        return network
    if next(network.parameters()).device.type == "cpu":
        require_no_batch_norm(network)
    network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    # looking for parameters without gradient keeps the buckets as they are: after a resume gradients are summed in the
    # same order
    return torch.nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)


def require_no_batch_norm(network: torch.nn.Module) -> None:
    """Refuse a network whose batch normalisation would be over the part of the batch that a process on a CPU has.

    Raises:
        UsageError: naming the layer.
    """
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm):
            raise UsageError(
                "several processes on a CPU cannot normalise over the whole batch",
                found=f"{type(module).__name__} at {name}",
                expected="a network without batch normalisation",
                hint="train it in one process, or another network (unet, dynunet, segresnet)",
            )


def is_part() -> bool:
    """Return whether the batch at hand is a part of one, of which other processes have the rest.

    It is where gradients are computed; a case that is validated is of one process.
    """
    return process_count() > 1 and torch.is_grad_enabled()


def total(values: Tensor) -> Tensor:
    """Return sums over a part of the batch summed over all parts, the same in each process."""
    return _Sum.apply(values) if is_part() else values


def mean_of_all(values: Tensor) -> Tensor:
    """Return the mean of values (N, ...) over all parts of the batch, which may be of different sizes."""
    if not is_part():
        return values.mean()
    both = total(torch.stack([values.sum(), values.new_tensor(values.numel())]))
    return both[0] / both[1]


def whole_batch(part: Tensor) -> Tensor:
    """Return the batch (B, ...) that this part belongs to, in the order of the processes."""
    if not is_part():
        return part
    sizes = of_all_processes(len(part))
    first = sum(sizes[: process_number()])
    padded = part.new_zeros((sum(sizes), *part.shape[1:]))
    return total(torch.cat([padded[:first], part, padded[first + len(part) :]]))


def of_all_cases(values: Sequence[T]) -> list[T]:
    """Return what all processes have of their cases, in the order of the cases.

    Args:
        values: one a case; of N processes the first has the cases 0, N, 2 N, ..., as `shared_cases` deals them out.
    """
    rounds = itertools.zip_longest(*of_all_processes([*values]), fillvalue=_NONE)
    return [value for each in rounds for value in each if value is not _NONE]


_NONE: Any = object()


def of_all_processes(value: T) -> list[T]:
    """Return what each process has, in their order; all have to call it."""
    if process_count() == 1:
        return [value]
    parts: list[Any] = [None] * process_count()
    dist.all_gather_object(parts, value)
    return parts


class _Sum(torch.autograd.Function):
    """Sum over processes, forward and backward."""

    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:
        summed = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(None, gradient)
