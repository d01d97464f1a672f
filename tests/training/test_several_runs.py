"""Runs in threads: so many at the same time, nothing after a failure, and what it is that failed."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from segpipe.common.subprocesses import Ended
from segpipe.errors import BAD_DATA, USAGE, SegpipeError
from segpipe.training.several_runs import in_threads, require_ended_well


class Children:
    stopped = False

    def stop(self) -> None:
        self.stopped = True


def worked_on(work: Callable[[int], object], jobs: int, count: int = 4) -> tuple[list[int], Children, type | None]:
    begun: list[int] = []
    children = Children()

    def task(value: int) -> None:
        begun.append(value)
        work(value)

    try:
        in_threads(task, range(count), jobs, children)
    except BaseException as error:  # noqa: BLE001 - the test looks at it
        return begun, children, type(error)
    return begun, children, None


def test_one_after_the_other_in_their_order() -> None:
    at_once, most = [], []

    def work(value: int) -> None:
        at_once.append(value)
        most.append(len(at_once))
        at_once.remove(value)

    assert worked_on(work, 1)[0] == [0, 1, 2, 3]
    assert max(most) == 1


def test_two_at_the_same_time() -> None:
    both = threading.Barrier(2)
    begun, children, error = worked_on(lambda _: both.wait(10), 2)
    assert (sorted(begun), children.stopped, error) == ([0, 1, 2, 3], False, None)


@pytest.mark.parametrize("failure", [SegpipeError("no"), KeyboardInterrupt()])
def test_nothing_is_begun_after_a_failure_and_what_runs_is_stopped(failure: BaseException) -> None:
    def work(value: int) -> None:
        if value == 1:
            raise failure

    begun, children, error = worked_on(work, 1)
    assert (begun, children.stopped, error) == ([0, 1], True, type(failure))


def test_a_failure_has_the_words_and_the_code_that_it_had_there() -> None:
    require_ended_well("fold 0", Ended(0, {}))
    with pytest.raises(SegpipeError, match="fold 0: no label") as caught:
        require_ended_well("fold 0", Ended(3, {"error": {"message": "no label", "case_id": "a", "hint": "look"}}))
    assert (caught.value.exit_code, caught.value.case_id, caught.value.hint) == (BAD_DATA, "a", "look")
    with pytest.raises(SegpipeError, match="for want of memory") as caught:
        require_ended_well("fold 0", Ended(-9, {}))
    assert caught.value.exit_code == USAGE
