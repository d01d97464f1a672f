"""Best and last state of a run, written whole, and resuming as if never interrupted."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import ReduceLROnPlateau

from segpipe.common.files import write_whole
from segpipe.components.processes import process_number
from segpipe.components.run_log import RunLog
from segpipe.errors import DataError, UsageError

FORMAT = 1
OF_PROGRESS = ("last_epoch", "_step_count", "_last_lr")  # of a scheduler's state, beside what it is planned by


class RunCheckpoint:
    """Save after every epoch; restore at the start; stop early.

    ``last.pt`` holds network, averaged network, optimiser, scheduler, scaler, epoch, best metric, early-stop counter
    and history; ``best.pt`` the state dict of the network alone, as it was best; ``final.pt`` as it was at the end,
    where that is what is kept. All load with ``weights_only=True``. Random states are not kept: `EpochSeed` derives
    them from the epoch. A run that is given more epochs than it was planned for goes on with the learning rates of a
    run of that many epochs, and with patience anew. Of several processes, whose states are the same, the first writes.

    Args:
        run_dir: folder of the run.
        network, optimizer, lr_scheduler: what is trained.
        log: the run's log, which the history belongs to.
        evaluator: engine whose key metric decides what is best.
        metric: its name in the evaluator's metrics.
        resume: restore ``last.pt``.
        patience: validations without a better metric before the run ends; 0 never ends it early.
        keep: ``best`` or ``last``; with ``last``, ``final.pt`` is what the run is for.
        averaged: the network whose weights are validated and kept; None or the network itself where there is no other.
    """

    def __init__(
        self,
        run_dir: str,
        network: Any,
        optimizer: Any,
        lr_scheduler: Any,
        log: RunLog,
        evaluator: Engine,
        metric: str = "val_mean_dice",
        resume: bool = False,
        patience: int = 0,
        keep: str = "best",
        averaged: Any = None,
    ) -> None:
        self.folder = Path(run_dir)
        self._writes = process_number() == 0
        self.parts = {"network": network, "optimizer": optimizer, "lr_scheduler": lr_scheduler}
        self.kept = network if averaged is None else averaged
        if self.kept is not network:
            self.parts["averaged"] = averaged
        self.log = log
        self.evaluator = evaluator
        self.metric = metric
        self.resume = resume
        self.patience = patience
        self.keeps_last = keep == "last"
        self.best: float | None = None
        self.best_epoch = 0
        self.stale = 0

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the handlers that validate and log."""
        self.evaluator.add_event_handler(Events.COMPLETED, self._judge, engine)
        engine.add_event_handler(Events.STARTED, self._restore)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _judge(self, evaluator: Engine, trainer: Engine) -> None:
        value = evaluator.state.metrics[self.metric]
        better = self.best is None or value > self.best
        self.stale = 0 if better else self.stale + 1
        if self.patience:
            self.log.note("validations_since_best", self.stale)
        if not better:
            return
        self.best, self.best_epoch = value, trainer.state.epoch
        self._write("best.pt", _on_cpu(self.kept.state_dict()))

    def _save(self, engine: Any) -> None:
        self.log.flush()
        state = {
            "format": FORMAT,
            **{name: part.state_dict() for name, part in self.parts.items()},
            "scaler": engine.scaler and engine.scaler.state_dict(),
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "max_epochs": engine.state.max_epochs,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "stale": self.stale,
            "history": self.log.history,
        }
        if self.keeps_last and (self._is_stale() or engine.state.epoch == engine.state.max_epochs):
            # before last.pt, so that a run is not taken as ended without them
            self._write("final.pt", _on_cpu(self.kept.state_dict()))
        self._write("last.pt", state)
        if self._is_stale():
            self.log.say(f"stopped early: no better validation Dice in {self.stale} validations")
            engine.terminate()

    def _write(self, name: str, state: Any) -> None:
        if not self._writes:
            return
        buffer = io.BytesIO()  # torch writes a file's name into its bytes; a buffer has none
        torch.save(state, buffer)
        with write_whole(self.folder / name) as stream:
            stream.write(buffer.getbuffer())

    def _is_stale(self) -> bool:
        return 0 < self.patience <= self.stale

    def _restore(self, engine: Any) -> None:
        if not self.resume:
            return
        path = self.folder / "last.pt"
        if not path.is_file():
            return  # stopped in its first epoch: the run begins again, from the same seed
        try:
            state = torch.load(path, map_location=engine.state.device, weights_only=True)
        except Exception as error:
            raise DataError("the checkpoint cannot be read", path=path, found=str(error).splitlines()[0]) from error
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise DataError("not a checkpoint of this version", path=path, expected=f"format {FORMAT}")
        extended = self._is_extended(state, engine.state.max_epochs)
        first_rates = [group["lr"] for group in self.parts["optimizer"].param_groups]
        for name, part in self.parts.items():
            if name == "lr_scheduler" and extended:
                continue
            try:
                part.load_state_dict(state[name])
            except (RuntimeError, ValueError, KeyError) as error:
                raise UsageError(
                    f"the checkpoint's {name} does not fit the config", path=path, found=str(error).splitlines()[0]
                ) from error
        if state["scaler"] is not None and engine.scaler is not None:
            engine.scaler.load_state_dict(state["scaler"])
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        self.best, self.best_epoch, self.stale = state["best"], state["best_epoch"], state["stale"]
        self.log.restore(state["history"])
        if extended:
            self._replay_schedule(first_rates, state["epoch"])
            self.stale = 0
        if self._is_stale():
            engine.terminate()
        elif self._writes and state["epoch"] < engine.state.max_epochs:
            (self.folder / "final.pt").unlink(missing_ok=True)  # of a run that was shorter

    def _is_extended(self, state: dict[str, Any], max_epochs: int) -> bool:
        """Return whether the learning rates were planned for another number of epochs."""
        if isinstance(self.parts["lr_scheduler"], ReduceLROnPlateau):  # goes by what was measured
            return False
        if "max_epochs" in state:
            return bool(state["max_epochs"] != max_epochs)
        before, now = (
            {name: value for name, value in each.items() if name not in OF_PROGRESS}
            for each in (state["lr_scheduler"], self.parts["lr_scheduler"].state_dict())
        )
        return before != now

    def _replay_schedule(self, first_rates: list[float], epochs: int) -> None:
        """Bring the scheduler to where it would be after so many epochs of the run as it is planned now."""
        for group, rate in zip(self.parts["optimizer"].param_groups, first_rates, strict=True):
            group["lr"] = rate
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch misses the steps of the optimiser, which were made before
            for _ in range(epochs):
                self.parts["lr_scheduler"].step()


def _on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}
