"""Requirements of the installed package, against what is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest

from segpipe.cli.doctor import doctor_report as software
from segpipe.cli.doctor.doctor_report import Need, extras, needs

LINES = [
    "numpy>=1.26",
    "torch<2,>=1",
    "no-such-package==1",
    "tomli>=2; python_version < '3.0'",
    "openvino>=2025.2; extra == 'openvino'",
    "absent; extra == 'more'",
    "numpy; extra == 'more'",
]


def test_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"numpy": "2.1.0", "torch": "2.13.0+cpu", "openvino": "2026.1.0rc1"}

    def version(package: str) -> str:
        if package not in here:
            raise PackageNotFoundError(package)
        return here[package]

    monkeypatch.setattr(software, "requires", lambda _: LINES)
    monkeypatch.setattr(software, "version", version)
    found = needs()
    assert found == [
        Need("numpy", ">=1.26", "2.1.0", None, "ok"),
        Need("torch", "<2,>=1", "2.13.0+cpu", None, "conflict"),
        Need("no-such-package", "==1", None, None, "missing"),
        Need("openvino", ">=2025.2", "2026.1.0rc1", "openvino", "ok"),
        Need("absent", "", None, "more", "missing"),
        Need("numpy", "", "2.1.0", "more", "ok"),
    ]
    assert extras(found) == [{"name": "openvino", "missing": []}, {"name": "more", "missing": ["absent"]}]


def test_without_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> Any:
        raise PackageNotFoundError

    monkeypatch.setattr(software, "requires", absent)
    monkeypatch.setattr(software, "metadata", absent)
    assert needs() == [] and software.supported_pythons() is None
