"""Shares of one piece of work: each item in one, and which may be at work in a folder at the same time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.common.shards import SHARDS, Shard, held_by
from segpipe.errors import RefusedError, UsageError

BUSY = RefusedError("busy")


@dataclass(frozen=True)
class Named:
    id: str


@given(st.lists(st.text("abc1-", min_size=1, max_size=6), unique=True, max_size=40), st.integers(1, 9))
def test_every_case_is_in_one_share(ids: list[str], number: int) -> None:
    cases = [Named(id) for id in ids]
    shares = [Shard(index, number).of(cases) for index in range(number)]
    assert sorted(case.id for share in shares for case in share) == sorted(ids)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert all(share == [case for case in cases if case in share] for share in shares)
    assert Shard(0, number).of(list(reversed(cases))) == list(reversed(shares[0]))  # whatever the order


@pytest.mark.parametrize("text", ["3/3", "1", "-1/3", "0/0", "a/b", "1/2/3", "0.5/2", ""])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(UsageError, match="share"):
        Shard.parse(text)


def test_who_may_work_in_a_folder_at_the_same_time(tmp_path: Path) -> None:
    with held_by(tmp_path, Shard(0, 2), BUSY):
        with held_by(tmp_path, Shard(1, 2), BUSY):
            assert sorted(path.name for path in (tmp_path / SHARDS).iterdir()) == ["0_of_2", "1_of_2"]
        for other, words in ((Shard(0, 2), "this share"), (Shard(0, 3), "another number"), (None, "busy")):
            with pytest.raises(RefusedError, match=words), held_by(tmp_path, other, BUSY):
                pass
    assert not (tmp_path / SHARDS).exists()
    (tmp_path / SHARDS).mkdir()
    (tmp_path / SHARDS / "0_of_2").touch()  # of one that was killed
    with held_by(tmp_path, Shard(2, 3), BUSY):
        pass
    with held_by(tmp_path, None, BUSY), pytest.raises(RefusedError), held_by(tmp_path, Shard(2, 3), BUSY):
        pass


def test_what_killed_shares_left_is_cleared_by_who_has_the_folder_alone(tmp_path: Path) -> None:
    (tmp_path / SHARDS).mkdir()
    (tmp_path / SHARDS / "1_of_2").touch()
    with held_by(tmp_path, None, BUSY):
        assert not (tmp_path / SHARDS).exists()
