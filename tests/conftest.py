"""Fixtures shared by the tests. This file also puts the helpers beside it on the path."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose network marks what is brighter than 100."""
    from tiny_bundle import write_bundle

    return write_bundle(tmp_path_factory.mktemp("bundle") / "tiny")
