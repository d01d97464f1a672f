"""State dicts: one hash for the same tensors, bytes that repeat, and the same again as safetensors."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from segpipe.bundle.tensors import read_state, safetensors_bytes, tensors_sha256, torch_bytes
from segpipe.errors import DataError


def test_one_hash_of_tensors_by_another_way_of_counting() -> None:
    import numpy as np
    import torch

    state = {"b": torch.tensor(3), "a": torch.tensor([[1.0, float("nan")]], dtype=torch.float32), "c": torch.ones(0)}
    expected = hashlib.sha256()
    expected.update(b'["a", "float32", [1, 2]]\n' + np.array([1.0, np.nan], "<f4").tobytes())
    expected.update(b'["b", "int64", []]\n' + (3).to_bytes(8, "little"))
    expected.update(b'["c", "float32", [0]]\n')
    assert tensors_sha256(state) == expected.hexdigest()
    turned = {**state, "a": torch.tensor([[1.0], [float("nan")]]).T}
    assert tensors_sha256(dict(reversed(turned.items()))) == expected.hexdigest()
    for change in ({"b": torch.tensor(4)}, {"b": torch.tensor(3.0)}, {"c": torch.ones(0, 1)}):
        assert tensors_sha256({**state, **change}) != expected.hexdigest()


def test_safetensors_hold_the_same_tensors_also_where_two_names_share_one(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load

    shared = torch.arange(6.0).reshape(2, 3)
    torch.save({"one": shared, "two": shared, "count": torch.tensor(2)}, tmp_path / "model.pt")
    state = read_state(tmp_path / "model.pt")
    assert state["one"] is state["two"]
    content = safetensors_bytes(state, tmp_path)
    again = load(content)
    assert set(again) == set(state) and torch.equal(again["two"], shared)
    assert content == safetensors_bytes(read_state(tmp_path / "model.pt"), tmp_path)
    (tmp_path / "again.pt").write_bytes(torch_bytes(state))
    assert (tmp_path / "again.pt").read_bytes() == torch_bytes(read_state(tmp_path / "again.pt"))


@pytest.mark.parametrize("content", [[1, 2], {"model": {"weight": 1}}])
def test_weights_that_are_no_state_dict(tmp_path: Path, content: Any) -> None:
    import torch

    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(DataError, match="no state dict"):
        read_state(tmp_path / "model.pt")
