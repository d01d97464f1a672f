"""Whether several processes can share a training, and what lets them where they cannot: each way named works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from segpipe.data import Manifest
from segpipe.errors import UsageError
from segpipe.training.network_cost import build_network


def require_shared(config: Mapping[str, Any], dataset: Manifest, processes: int, rule: str | None = None) -> None:
    """Refuse what so many processes cannot share.

    Args:
        config: composed; its batch is that of all processes.
        dataset: of the run.
        processes: that share it.
        rule: of the batch, ``split`` or ``scaled``; None for a run whose batch stays as it is.

    Raises:
        UsageError: they cannot share its batches or its validation, or on CPUs its network.
    """
    from segpipe.components import require_shares

    fold = config["fold"]
    asked = _Asked(
        processes,
        rule,
        config["batch_size"],
        config["steps_per_epoch"],
        len(dataset.select("training", fold)),
        0 if fold is None else len(dataset.select("validation", fold)),
    )
    refused = asked.refusal(processes, asked.batch_size)
    if refused is not None:
        refused.hint = ", or ".join(asked.ways())
        raise refused
    if "cuda" not in str(config.get("device")):
        require_shares(processes, processes, processes, 0, build_network(config))


@dataclass(frozen=True)
class _Asked:
    processes: int
    rule: str | None
    batch_size: int
    steps: int
    cases: int
    validated: int

    def refusal(self, number: int, batch_size: int, filled: bool = False) -> UsageError | None:
        """Return why so many cannot share such batches; those that are filled have no smaller last one."""
        from segpipe.components import require_shares

        size = batch_size if self.steps or filled else self.cases
        try:
            require_shares(number, batch_size, size, self.validated, None)
        except UsageError as error:
            return error
        return None

    def ways(self) -> list[str]:
        """Return what to give instead, the change of the batch first, else the number of processes."""
        ways = []
        if self.rule is not None and (words := self._batches(self.processes)):
            ways.append(words)
        if self.rule == "split" and not self.refusal(self.processes, self.batch_size * self.processes):
            ways.append("--batch-rule scaled")
        fewer = self._fewer()
        alone = "leave --processes out" if self.rule is None else "--processes 1"  # a fragment may name some
        ways.append(f"--processes {fewer}" if fewer > 1 else alone)
        if self.rule == "split" and fewer < self.validated < self.processes:
            ways.append(f"--processes {self.validated} {self._batches(self.validated)}")
        return ways

    def _fewer(self) -> int:
        """Return the largest number below that can share it as it is."""
        of_each = self.batch_size // self.processes if self.rule == "scaled" else None
        numbers = range(min(self.processes - 1, self.validated or self.cases), 1, -1)
        fitting = (each for each in numbers if not self.refusal(each, of_each * each if of_each else self.batch_size))
        return next(fitting, 1)

    def _batches(self, number: int) -> str | None:
        """Return settings with which so many share the batches; None where the batch is not what keeps them."""
        even = -(-self.batch_size // number) * number
        for words, batch_size, filled in (
            ([], self.batch_size, True),
            ([f"--set batch_size={even}"], even, False),
            ([f"--set batch_size={even}"], even, True),
        ):
            if not self.refusal(number, batch_size, filled):
                steps = [f"--set steps_per_epoch={-(-self.cases // batch_size)}"] if filled and not self.steps else []
                return " ".join([*words, *steps])
        return None
