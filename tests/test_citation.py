"""CITATION.cff says what pyproject.toml and the package say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from segpipe import __version__

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
def test_the_citation_is_that_of_the_package() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["cff-version"], cited["type"]) == ("1.2.0", "software")
    assert cited["title"] == project["name"]
    assert cited["version"] == project["version"] == __version__
    assert cited["license"] == project["license"]
    assert cited["keywords"] == project["keywords"]
    assert cited["authors"] == project["authors"]
