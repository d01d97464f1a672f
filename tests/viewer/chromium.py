"""Debian's Chromium without a window, spoken to in its DevTools protocol over a pipe: no driver, no port."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest
from PIL import Image

NO_CHROMIUM = "Chromium is not installed (make validators)"
PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # of tests as root; what is opened is ours
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--force-device-scale-factor=1",
    "--remote-debugging-pipe",
)


class Browser:
    """One page in a Chromium of its own.

    Attributes:
        requests: address of everything that the page asked for, but for ``data:`` and ``blob:``.
        complaints: what it logged as an error, and exceptions of its scripts.
    """

    def __init__(
        self, folder: Path, size: tuple[int, int] = (1280, 900), dark: bool = False, flags: tuple[str, ...] = ()
    ) -> None:
        if PROGRAM is None:
            pytest.skip(NO_CHROMIUM)
        folder.mkdir(parents=True, exist_ok=True)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._numbers = itertools.count(1)
        self._pending = b""
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        words = [PROGRAM, *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{to_write}', "bash", *words],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "HOME": str(folder)},
        )
        os.close(to_read)
        os.close(to_write)
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session: str | None = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._ask(f"{domain}.enable")
        self._ask("Network.setCacheDisabled", cacheDisabled=True)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self.resize(*size)

    _session = None

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        self._ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def open(self, address: str) -> None:
        self._ask("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """Return what an expression gives, a promise waited for."""
        done = self._ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait_for(self, script: str, seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < end, f"{script} in {seconds} s; {self.complaints}"
            time.sleep(0.1)

    def picture(self, file: Path | None = None) -> np.ndarray:
        """Return the page as (rows, columns, RGB)."""
        content = base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"])
        if file is not None:
            file.write_bytes(content)
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)

    def mouse(self, kind: str, x: float, y: float, button: str = "left") -> None:
        held = 0 if kind == "mouseReleased" else {"left": 1, "right": 2}[button]
        self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=held, clickCount=1)

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y)

    def drag(self, start: tuple[float, float], end: tuple[float, float], button: str = "left") -> None:
        self.mouse("mousePressed", *start, button)
        for part in (0.25, 0.5, 0.75, 1.0):
            self.mouse("mouseMoved", *((1 - part) * a + part * b for a, b in zip(start, end, strict=True)), button)
        self.mouse("mouseReleased", *end, button)

    def key(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {}
        self._ask("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self._ask("Input.dispatchKeyEvent", type="keyUp", key=key)

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            block = os.read(self._read, 1 << 20)
            assert block, "Chromium has ended"
            self._pending += block
        line, _, self._pending = self._pending.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, facts: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            address = facts["request"]["url"]
            if not address.startswith(("data:", "blob:", "about:")):
                self.requests.append(address)
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(facts["exceptionDetails"])[:400])
        elif method == "Log.entryAdded" and facts["entry"]["level"] == "error":
            self.complaints.append(facts["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and facts["type"] == "error":
            self.complaints.append(json.dumps(facts["args"])[:400])
