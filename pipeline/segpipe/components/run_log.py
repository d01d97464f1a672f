"""What a run says while it trains: history.csv, TensorBoard, and a line or a bar for who watches."""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys
from scipy import ndimage

from segpipe.common.console import Console, as_clock
from segpipe.common.files import write_csv
from segpipe.components.processes import of_all_cases, process_number

FIRST_COLUMNS = ["epoch", "train_loss", "val_loss", "val_mean_dice", "learning_rate", "train_seconds", "seconds"]


class RunLog:
    """One row an epoch to ``history.csv`` and TensorBoard, whose step is the epoch everywhere.

    The history travels in the checkpoint and the file is written from it, so a resumed run has no row twice. The last
    epoch is validated whatever the interval, so that a run never ends with weights that nothing was measured of. Of
    several processes the first alone writes and speaks; all have the same history.

    Args:
        run_dir: folder of the run.
        optimizer: whose learning rate is logged.
        evaluator: engine of the validation.
        loss: takes logits and truth, for the validation loss.
        progress: write lines or a bar to standard error.
    """

    def __init__(self, run_dir: str, optimizer: Any, evaluator: Engine, loss: Any, progress: bool = True) -> None:
        self.folder = Path(run_dir)
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.loss = loss
        self.progress = progress
        self._writes = process_number() == 0
        self._tell: Callable[[str], object] | None = None
        self._followers: list[Callable[[list[dict[str, float | int | None]]], object]] = []
        self.history: list[dict[str, float | int | None]] = []
        self._writer: Any = None
        self._noted: dict[str, float] = {}
        self._losses: list[float] = []
        self._val_losses: list[float] = []
        self._overlay: np.ndarray | None = None
        self._began = self._trained = 0.0
        self._bar: Any = None

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the handler that validates."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._validate_last)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end)
        engine.add_event_handler(Events.COMPLETED, lambda _: self.close())
        self.evaluator.add_event_handler(Events.STARTED, lambda _: self._val_losses.clear())
        self.evaluator.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._validation_loss)
        self.evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=1), self._first_case)

    def report_to(self, progress: Callable[[str], object]) -> None:
        """Call back with a line for each epoch, instead of writing to standard error."""
        self._tell = progress

    def follow(self, follower: Callable[[list[dict[str, float | int | None]]], object]) -> None:
        """Call back with the whole history at the end of each epoch."""
        self._followers.append(follower)

    def restore(self, history: list[dict[str, float | int | None]]) -> None:
        """Take over the history of the run that is resumed."""
        self.history = list(history)

    def note(self, name: str, value: float) -> None:
        """Add a number to the row of the epoch that is under way."""
        self._noted[name] = value

    def say(self, text: str) -> None:
        """Say something to whoever watches, in a line."""
        if self._writes and (self.progress or self._tell is not None):
            (self._tell or Console("train").note)(text)

    def flush(self) -> None:
        """Bring the history to disk, before the checkpoint that says that the epoch is done."""
        if not self._writes:
            return
        if self._writer is not None:
            self._writer.flush()
        columns = FIRST_COLUMNS + sorted({key for row in self.history for key in row} - set(FIRST_COLUMNS))
        write_csv(self.folder / "history.csv", self.history, columns)

    def close(self) -> None:
        """End bar and TensorBoard file."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            threading.excepthook = self._hook

    def _begin(self, engine: Engine) -> None:
        if self._writer is None and self._writes:
            from torch.utils.tensorboard import SummaryWriter

            # what an interrupted epoch wrote is purged by its step
            self._hook = threading.excepthook
            threading.excepthook = functools.partial(_unless_tensorboard, self._hook)
            self._writer = SummaryWriter(self.folder / "tensorboard", purge_step=engine.state.epoch)
        self._losses.clear()
        self._val_losses.clear()
        self._began = self._trained = time.perf_counter()
        self.evaluator.state.metrics = {}
        self._rate = float(self.optimizer.param_groups[0]["lr"])

    def _step(self, engine: Engine) -> None:
        self._losses.append(float(engine.state.output[CommonKeys.LOSS].detach()))
        self._trained = time.perf_counter()
        self._show(engine)

    def _validation_loss(self, evaluator: Engine) -> None:
        output = evaluator.state.output
        loss = self.loss(output[CommonKeys.PRED], output[CommonKeys.LABEL])
        self._val_losses.append(float(loss.detach()))

    def _first_case(self, evaluator: Engine) -> None:
        case = evaluator.state.output[0]
        keys = (CommonKeys.IMAGE, CommonKeys.LABEL, CommonKeys.PRED)
        self._overlay = overlay(*(np.asarray(case[key][0].detach().cpu()) for key in keys))

    def _validate_last(self, engine: Engine) -> None:
        if engine.state.epoch == engine.state.max_epochs and not self.evaluator.state.metrics:
            self.evaluator.run(engine.state.epoch)

    def _end(self, engine: Engine) -> None:
        row: dict[str, float | int | None] = {
            "epoch": engine.state.epoch,
            "train_loss": _mean(self._losses),
            "val_loss": _mean(of_all_cases(self._val_losses)),
            "learning_rate": self._rate,
            "train_seconds": round(self._trained - self._began, 3),
            "seconds": round(time.perf_counter() - self._began, 3),
        }
        row.update({name: float(value) for name, value in {**self.evaluator.state.metrics, **self._noted}.items()})
        self._noted.clear()
        self.history.append(row)
        if self._writes:
            self._show_row(engine, row)

    def _show_row(self, engine: Engine, row: dict[str, float | int | None]) -> None:
        for name, value in row.items():
            if name != "epoch" and value is not None:
                self._writer.add_scalar(name, value, engine.state.epoch)
        if self._overlay is not None:
            self._writer.add_image("validation case", self._overlay, engine.state.epoch, dataformats="HWC")
            self._overlay = None
        self._report(engine, row)
        for follower in self._followers:
            follower(self.history)

    def _report(self, engine: Engine, row: dict[str, float | int | None]) -> None:
        dice = row.get("val_mean_dice")
        if self._has_bar() and dice is None:
            return
        seconds = [float(past["seconds"] or 0) for past in self.history]
        left = (engine.state.max_epochs - engine.state.epoch) * sum(seconds) / len(seconds)
        text = f"epoch {engine.state.epoch}/{engine.state.max_epochs}  loss {row['train_loss']:.4f}"
        if dice is not None:
            text += f"  validation Dice {dice:.4f}"
        self.say(f"{text}  {as_clock(left)} left")

    def _has_bar(self) -> bool:
        return self._writes and self.progress and self._tell is None and sys.stderr.isatty()

    def _show(self, engine: Engine) -> None:
        if not self._has_bar():
            return
        if self._bar is None:
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("steps, loss {task.fields[loss]:.4f}"),
                TimeRemainingColumn(),
                console=RichConsole(file=sys.stderr),
                transient=True,
            )
            total = engine.state.max_epochs * engine.state.epoch_length
            self._task = self._bar.add_task("train", total=total, loss=0.0)
            self._bar.start()
        self._bar.update(self._task, completed=engine.state.iteration, loss=self._losses[-1])


def _unless_tensorboard(hook: Callable[[Any], object], failed: Any) -> None:
    """Tell of a thread that failed, but of TensorBoard's: its error is raised again where the next row is written."""
    if not type(failed.thread).__module__.startswith("tensorboard"):
        hook(failed)


def overlay(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Draw the slice with the most truth, outlines of the truth in green and of the prediction in red.

    Args:
        image, truth, prediction: (X, Y, Z).

    Returns:
        (H, W, 3) uint8, each voxel as a square of several pixels where the slice is small; the second axis points up.
    """
    z = int((truth > 0).sum((0, 1)).argmax())
    square = np.ones((max(1, 256 // max(image.shape[:2])),) * 2, np.uint8)
    plane, *label_maps = (np.kron(array[:, :, z], square) for array in (image, truth, prediction))
    low, high = np.percentile(plane, [1, 99])
    grey = np.clip((plane - low) / max(high - low, 1e-9), 0, 1)
    picture = np.repeat((grey * 255).astype(np.uint8)[:, :, None], 3, 2)
    for labels, colour in zip(label_maps, ((0, 220, 0), (240, 30, 30)), strict=True):
        for value in np.unique(labels):
            mask = labels == value
            if value:
                picture[mask & ~ndimage.binary_erosion(mask)] = colour
    return np.ascontiguousarray(np.rot90(picture))


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
