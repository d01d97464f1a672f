"""What all tests share: real data or a stated skip, no flaky deadlines, and no silent skip where none may be."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

NO_REAL_DATA = "SEGPIPE_DATA does not name a folder of real scans"
ALLOWED_SKIPS = {
    NO_REAL_DATA: "real scans are not part of the repository",
    "a network namespace can only be made by root": "small archives on loopback stand in for Orthanc in test_send.py",
    "pip reaches no registry of packages": "stock MONAI runs bundles of the installed environment in test_stock_run.py",
    "the site's environment is not made (make docs)": "`.ci/run` makes it",
    "Ray's environment is not made (make test-ray)": "its tasks are those of Slurm and local jobs in test_real_jobs.py",
    "a small file system can only be mounted by root": "a full disk is simulated in tests/prediction as well",
}

settings.register_profile("segpipe", deadline=None)  # the machine may be busy
settings.load_profile("segpipe")

_skipped: dict[str, str] = {}

# what is imported lives as long as the tests: it is not looked through for garbage again and again, see below
gc.disable()

# commands that tests start must know Ctrl-C, which what runs in the background of a shell is told to ignore
signal.signal(signal.SIGINT, signal.default_int_handler)


# absl, which TensorBoard loads, closes the stream that it began with once logging is set up anew and standard error is
# another one by then: it would be the file that pytest captures in, and every later test would fail
with suppress(ImportError):
    from absl import logging as absl_logging

    absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Conversions are kept for the session, of all its processes together, apart from the user's."""
    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent
    os.environ["SEGPIPE_CACHE"] = str(session / "cache")
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("SEGPIPE_DATA"):
        for item in items:
            if item.get_closest_marker("realdata"):
                item.add_marker(pytest.mark.skip(reason=NO_REAL_DATA))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)  # the rest is looked through less often than Python would
    gc.enable()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _note_skip(report.nodeid, reason)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:  # a whole module, by importorskip
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _note_skip(report.nodeid, reason)


def _note_skip(nodeid: str, reason: str) -> None:
    if reason.removeprefix("Skipped: ") not in ALLOWED_SKIPS:
        _skipped[nodeid] = reason


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _skipped and os.environ.get("SEGPIPE_NO_SKIPS") == "1" and not hasattr(session.config, "workerinput"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped and os.environ.get("SEGPIPE_NO_SKIPS") == "1":
        terminalreporter.section("skipped, and not in ALLOWED_SKIPS of tests/conftest.py: a failure")
        for nodeid, reason in sorted(_skipped.items()):
            terminalreporter.line(f"{nodeid}: {reason}")


@pytest.fixture(scope="session")
def tiny_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of a small generated data set with two folds, beside its task.yaml."""
    from tiny_data import write_data

    return write_data(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose network marks what is brighter than 100."""
    from tiny_bundle import write_bundle

    return write_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def lent() -> Iterator[dict[str, Any]]:
    workers: dict[str, Any] = {}
    yield workers
    if workers:
        from lent_worker import give_back

        give_back(workers)


@pytest.fixture
def one_worker(monkeypatch: pytest.MonkeyPatch, lent: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """A real worker that all tests of a bundle share; see `lent_worker`."""
    from lent_worker import lend

    lend(monkeypatch, lent, tmp_path_factory.getbasetemp())
