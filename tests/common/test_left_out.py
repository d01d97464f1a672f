"""What is left out cannot be imported meanwhile; what is loaded, and everything afterwards, can."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

from segpipe.common.left_out import left_out


def test_what_is_left_out_is_as_if_it_were_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with left_out(["wave", "json"]):
        for name in ("wave", "wave.part"):
            with pytest.raises(ModuleNotFoundError):
                importlib.import_module(name)
        assert importlib.import_module("json") is json
    assert importlib.import_module("wave").__name__ == "wave"


def test_it_is_there_again_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with pytest.raises(ZeroDivisionError), left_out(["wave"]):
        raise ZeroDivisionError
    assert importlib.import_module("wave").__name__ == "wave"
