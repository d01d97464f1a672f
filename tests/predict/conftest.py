"""A small bundle for the tests of prediction."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_bundle import write_bundle


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose network marks what is brighter than 100."""
    return write_bundle(tmp_path_factory.mktemp("bundle") / "tiny")
