"""A Slurm of one node on loopback, with a munge of its own: nothing of it outlives the block."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
CONFIG = """
ClusterName=loop
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=1
KillWait=2
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def found() -> bool:
    """Whether Debian's slurm-wlm and munge are installed."""
    return all(shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in PROGRAMS)


@contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """Run it for the time of the block, its configuration named by ``SLURM_CONF``; the folder's path is to be short."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    values = {"folder": folder, "host": host, "user": getpass.getuser(), "ports": [_port(), _port()]}
    (folder / "slurm.conf").write_text(CONFIG.format(**values))
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    files = {"--key-file": "key", "--socket": "munge.socket", "--pid-file": "munged.pid"}
    files |= {"--log-file": "munged.log", "--seed-file": "munged.seed"}
    munged = ["munged", "--foreground", "--force", *(f"{option}={folder / name}" for option, name in files.items())]
    commands = [munged, ["slurmctld", "-D", "-i", "-c"], ["slurmd", "-D", "-N", host]]
    started: list[subprocess.Popen[bytes]] = []
    before = os.environ.get("SLURM_CONF")
    with (folder / "log").open("wb") as log:
        try:
            for command in commands:
                process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
                started.append(process)
                if command is munged:
                    _wait(lambda: (folder / "munge.socket").exists(), folder)
            states = ["sinfo", "-h", "-o", "%T"]
            ask = {"env": environment, "capture_output": True, "text": True}
            _wait(lambda: subprocess.run(states, **ask).stdout.strip() == "idle", folder)  # type: ignore[call-overload]
            os.environ["SLURM_CONF"] = environment["SLURM_CONF"]
            yield
        finally:
            os.environ.pop("SLURM_CONF", None)
            if before is not None:
                os.environ["SLURM_CONF"] = before
            for process in reversed(started):
                process.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                process.kill()
                process.wait()


def _wait(ready: object, folder: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < deadline, (folder / "log").read_text(errors="replace")
        time.sleep(0.1)


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
