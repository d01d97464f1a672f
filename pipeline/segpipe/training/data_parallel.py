"""Several processes that train one network: how many, what each needs, started here, and ended together.

What they compute is `segpipe.components.processes`. They are started as ``torchrun`` starts them, so a run does not
know who did: the first one has the lock, the record and all files, and the others follow it.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.common.console import Console, quoted
from segpipe.common.files import read_json, write_json
from segpipe.common.processes import place_among_processes
from segpipe.common.subprocesses import Ended, Subprocesses, require_ended_well
from segpipe.data import Manifest, load_manifest
from segpipe.errors import OK, SegpipeError, UsageError, chain
from segpipe.training.process_shares import require_shared

if TYPE_CHECKING:
    from collections.abc import Iterator

RULES = ("split", "scaled")
LOST = "another process of the training has ended"
LAST_WORDS = 10  # lines of a process that died without an answer
WAIT_S = 5.0  # that the one which died is heard of before those that lost it, and that these end by themselves
END_S = 20.0  # in which the first one writes its record, and the others lose it
Progress = Callable[[str], object]


def follows() -> bool:
    """Return whether this process is one of several and not the first."""
    return place_among_processes()[0] > 0


def settle_batch(config: dict[str, Any], origins: dict[str, str], rule: str, dataset: Manifest) -> list[str]:
    """Make a config's batch that of all its processes, and check that they can share it.

    Args:
        config: composed.
        origins: of its ids.
        rule: ``split`` deals the batch out; with ``scaled`` each process has so many cases.
        dataset: of the run.

    Returns:
        What a user should know.

    Raises:
        UsageError: they cannot, or there is no such rule.
    """
    if rule not in RULES:
        raise UsageError("no such rule of the batch", found=rule, expected=" or ".join(RULES))
    processes = int(config["processes"])
    notes: list[str] = []
    if processes == 1:
        return notes
    if rule == "scaled":
        origins["batch_size"] += f", {config['batch_size']} for each of {processes} processes"
        config["batch_size"] *= processes
        notes.append(f"batches of {config['batch_size']} cases, at the same learning rate")
    require_shared(config, dataset, processes, rule)
    return notes


def _on_gpu(config: Mapping[str, Any]) -> bool:
    return "cuda" in str(config.get("device"))


def require_its_gpus(config: Mapping[str, Any]) -> None:
    """Refuse a run whose device this machine lacks, before anything is written.

    Args:
        config: composed, or of a run; those that ``torchrun`` started are counted when they join.

    Raises:
        UsageError: there is no GPU, or fewer than processes.
    """
    if not _on_gpu(config):
        return
    from monai.bundle import ConfigParser

    from segpipe.components import require_gpus

    device = ConfigParser(json.loads(json.dumps(config))).get_parsed_content("device")
    require_gpus(device, 1 if place_among_processes()[1] > 1 else int(config["processes"]))


def of_several_processes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``torchrun ... -m monai.bundle run`` needs beside the config, whose parts know of the others."""
    join = {"_target_": "segpipe.components.join_processes", "device": "@device"}
    leave = {"_target_": "segpipe.components.leave_processes"}
    return {"initialize": [join, *config["initialize"]], "run": [*config["run"], leave]}


def processes_of(record: Mapping[str, Any]) -> int:
    """Return how many processes a run goes on with, by its record."""
    others = record.get("other_processes") or [{"processes": record.get("processes", 1)}]
    return int(others[-1]["processes"])


def settle_processes(out: Path, record: dict[str, Any], asked: int | None, allow: bool) -> int:
    """Return with how many processes a run goes on: as many as before, or others where that is allowed.

    Args:
        out: run folder.
        record: its record, which says it where the number is another one from here on.
        asked: with how many; None for as many as before.
        allow: take another number.

    Raises:
        UsageError: another number is not allowed, or they cannot share the run's batches.
    """
    known, (_, started) = processes_of(record), place_among_processes()
    if started > 1 and asked not in (None, started):
        raise UsageError("torchrun started another number", found=started, expected=asked, hint="leave --processes out")
    wanted = started if started > 1 else asked or known
    if wanted == known:
        return known
    if not allow:
        raise UsageError(
            f"the run is one of {_counted(known)}; others sum in another order",
            path=out,
            found=_counted(wanted),
            hint=f"go on with `segpipe train --resume RUN`, or with `--processes {wanted} --allow-other-processes`, "
            "which the record will say",
        )
    config = read_json(out / "config.json", "run config")
    if "sampler" not in config.get("train", {}):
        raise UsageError("the run was begun by a version that knew one process alone", path=out, hint="train it anew")
    require_shared(config, load_manifest(out / "manifest.json"), wanted)
    accepted = {"after_epoch": record.get("epochs", 0), "processes": wanted}
    record["other_processes"] = [*record.get("other_processes", []), accepted]
    write_json(out / "run.json", record)
    return wanted


@contextmanager
def joined(out: Path, config: Mapping[str, Any]) -> Iterator[None]:
    """Join the processes that train together, for the time of the block; one alone has nobody to join.

    Raises:
        UsageError: another one ended before.
    """
    if place_among_processes()[1] == 1:
        yield
        return
    from segpipe.components import join_processes, leave_processes

    if follows():
        with suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # it has nothing to put in order, and may wait for others
    try:
        join_processes("cuda" if _on_gpu(config) else "cpu")
        yield
    except Exception as error:
        if _is_of_others(error):
            raise UsageError(LOST, path=out, hint=_go_on(out)) from error
        raise
    finally:
        leave_processes()


def _counted(processes: int) -> str:
    return "one process" if processes == 1 else f"{processes} processes"


def _is_of_others(error: Exception) -> bool:
    import torch

    return any(
        isinstance(link, torch.distributed.DistError)
        or (isinstance(link, RuntimeError) and ("gloo" in str(link) or "Connection closed by peer" in str(link)))
        for link in chain(error)
    )


def _go_on(out: Path) -> str:
    return f"go on with `segpipe train --resume {quoted(out)}`"


def launch(out: Path, processes: int, arguments: Mapping[str, Any], progress: Progress | None) -> None:
    """Train in so many processes of this machine; where one ends badly, all end.

    Args:
        out: run folder, prepared.
        processes: how many.
        arguments: of `segpipe.train` in each.
        progress: called with the lines of the first one; None writes them to standard error.

    Raises:
        SegpipeError: of the process that ended badly first.
        KeyboardInterrupt: they were interrupted.
    """
    tell = progress or Console("train").note
    children, culprits = [Subprocesses() for _ in range(processes)], dict[int, Ended]()
    words = {number: deque[str](maxlen=LAST_WORDS) for number in range(processes)}

    def hear(number: int, line: str) -> None:
        words[number].append(line)
        if number == 0:
            tell(line)

    with _store() as port, ThreadPoolExecutor(processes) as pool:
        pending: dict[Future[Ended], int] = {}
        for number in range(processes):
            listener = _listener(hear, number)
            place = _environment(number, processes, port)
            call = pool.submit(children[number].call, "segpipe.train", arguments, listener, None, place)
            pending[call] = number
        try:
            while pending and not _is_known(culprits):
                patience = WAIT_S if culprits else None
                done, _ = wait(pending, patience, FIRST_COMPLETED)
                if not done:
                    break  # whoever died did so without a word
                for future in done:
                    ended = future.result()
                    number = pending.pop(future)
                    if ended.code != OK:
                        culprits[number] = ended
            wait(pending, WAIT_S)
        finally:
            _end(children, [*pending])
    if culprits:
        number = next((each for each, ended in culprits.items() if not _lost_others(ended)), min(culprits))
        if not culprits[number].document:
            for line in words[number] if number else ():
                tell(f"process {number}: {line}")
        _raise(culprits[number], number, out)


def _listener(hear: Callable[[int, str], None], number: int) -> Callable[[str], None]:
    return lambda line: hear(number, line)


def _is_known(culprits: Mapping[int, Ended]) -> bool:
    """Return whether one ended for a reason of its own."""
    return any(not _lost_others(ended) for ended in culprits.values())


def _lost_others(ended: Ended) -> bool:
    return bool(ended.error.get("message") == LOST)


def _raise(ended: Ended, number: int, out: Path) -> None:
    try:
        require_ended_well(ended, f"process {number}")
    except SegpipeError as error:
        error.hint = error.hint or _go_on(out)
        raise


def _end(children: list[Subprocesses], pending: list[Future[Ended]]) -> None:
    """End those that are left: the first as Ctrl-C would, while the others still answer it, then all for good."""
    for chosen, number in ((children[:1], signal.SIGTERM), (children, signal.SIGTERM), (children, signal.SIGKILL)):
        if all(call.done() for call in pending):
            return
        for child in chosen:
            child.stop(number)
        wait(pending, END_S)


@contextmanager
def _store() -> Iterator[int]:
    """Hold the store in which the processes find each other, on loopback; yields its port."""
    from torch.distributed import TCPStore

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        store = TCPStore("127.0.0.1", port, None, True, wait_for_workers=False, master_listen_fd=listening.detach())
        try:
            yield port
        finally:
            del store


def _environment(number: int, processes: int, port: int) -> dict[str, str]:
    """Return what ``torchrun`` says to a process."""
    numbers = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
    local = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return {**{name: str(value) for name, value in numbers.items()}, **place, **quiet, **local}
