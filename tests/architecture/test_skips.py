"""Where SEGPIPE_NO_SKIPS=1, a skip without a listed reason fails the session."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"
INI = "[pytest]\nmarkers =\n    realdata: needs real scans\n"
UNLISTED = "import pytest\n\ndef test_oracle():\n    pytest.skip('the oracle is not installed')\n"
WHOLE_MODULE = "import pytest\n\npytest.importorskip('no_such_oracle')\n\ndef test_oracle():\n    pass\n"
REAL_DATA = "import pytest\n\n@pytest.mark.realdata\ndef test_scan():\n    raise RuntimeError\n"
FINE = "\n\ndef test_fine():\n    pass\n"


@pytest.mark.parametrize(
    ("content", "no_skips", "code"),
    [(UNLISTED, "1", 1), (UNLISTED, "", 0), (WHOLE_MODULE, "1", 1), (REAL_DATA, "1", 0)],
)
@pytest.mark.parametrize("more", [[], ["-n", "2"]])
@pytest.mark.slow
def test_skips(tmp_path: Path, content: str, no_skips: str, code: int, more: list[str]) -> None:
    shutil.copy(CONFTEST, tmp_path / "conftest.py")
    (tmp_path / "pytest.ini").write_text(INI)
    (tmp_path / "test_made.py").write_text(content)
    (tmp_path / "test_other.py").write_text(FINE)
    environment = {name: value for name, value in os.environ.items() if name != "SEGPIPE_DATA"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *more],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**environment, "SEGPIPE_NO_SKIPS": no_skips},
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert ("not in ALLOWED_SKIPS" in done.stdout) == bool(code)
