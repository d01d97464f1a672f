"""The viewer's server: on loopback alone, for whoever holds its token, and with nothing but what the page needs.

Nothing can be written, unless the server was given an editor: then one label map a case.

The token stands in the path, since cookies are shared by all servers of a host. A request has to name this host
(against DNS rebinding), paths are looked up in a table and never become file names, and nothing is kept in caches.
"""

from __future__ import annotations

import hmac
import json
import math
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from segpipe.common.console import visible
from segpipe.errors import DataError, UsageError, as_segpipe_error
from segpipe.viewer.cases import ViewedCase
from segpipe.viewer.editing import Editor
from segpipe.viewer.page import asset, niivue_script, picture_of, served_page
from segpipe.viewer.volumes import ShownCase, read_case

LOOPBACK = "127.0.0.1"
KEPT_CASES = 2
TEXT, JSON, HTML, SCRIPT, STYLE, BYTES = (
    "text/plain; charset=utf-8",
    "application/json",
    "text/html; charset=utf-8",
    "text/javascript; charset=utf-8",
    "text/css; charset=utf-8",
    "application/octet-stream",
)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class ViewServer:
    """A server of the viewer.

    >>> from segpipe.viewer import ViewedCase, ViewServer
    >>> with ViewServer([ViewedCase("case_1")], "One case") as server:
    ...     server.url.startswith("http://127.0.0.1:")
    True

    Args:
        cases: to look at.
        title: of the page.
        port: to listen at; 0 takes a free one.
        editor: takes corrected label maps; None: nothing can be written.

    Attributes:
        url: of the page, with the token.
        can_edit: whether corrected label maps are taken.

    Raises:
        UsageError: the port is taken or may not be used.
    """

    def __init__(self, cases: Sequence[ViewedCase], title: str, port: int = 0, editor: Editor | None = None) -> None:
        self._cases, self._title, self._editor = list(cases), title, editor
        self.can_edit = editor is not None
        self._shown: OrderedDict[int, ShownCase] = OrderedDict()
        self._reading = threading.Lock()
        self._token = secrets.token_urlsafe(24)
        try:
            self._http = _Server((LOOPBACK, port), _Handler)
        except (OSError, OverflowError) as error:
            found = f"port {port}: {getattr(error, 'strerror', None) or error}"
            raise UsageError("the server cannot listen", found=found, hint="choose another --port") from error
        self._http.viewer = self
        self.port: int = self._http.server_address[1]
        self.url = f"http://{LOOPBACK}:{self.port}/{self._token}/"
        self.hosts = {f"{LOOPBACK}:{self.port}", f"localhost:{self.port}"}

    def __enter__(self) -> ViewServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.server_close()

    def serve(self) -> None:
        """Answer requests until `stop` is called or this thread is interrupted."""
        self._http.serve_forever(poll_interval=0.2)

    def stop(self) -> None:
        """End `serve`, which runs in another thread."""
        self._http.shutdown()

    def room_for(self, path: str) -> int | None:
        """Return how many bytes may be sent to a path; None where nothing may."""
        index = self._edited(path)
        volumes = () if index is None else self._read(index).volumes
        return volumes[0].values.size if volumes else None

    def take(self, path: str, content: bytes, minutes: float) -> dict[str, Any] | None:
        """Save a corrected label map; None where the path names no case, or nothing may be written.

        Raises:
            DataError: it is no label map of the case.
            UsageError: it cannot be written.
        """
        index = self._edited(path)
        if index is None or self._editor is None:
            return None
        saved = self._editor.save(self._cases[index], self._read(index), content, minutes)
        with self._reading:
            self._shown.pop(index, None)  # it has another layer now
        return saved

    def _edited(self, path: str) -> int | None:
        """Return the number of the case whose correction a path names."""
        match self._below(path).split("/"):
            case ["case", number, "correction"] if self._editor is not None:
                return _index(number, len(self._cases))
        return None

    def _below(self, path: str) -> str:
        """Return a path without the token; what names nothing where that is wrong."""
        token, slash, rest = path.removeprefix("/").partition("/")
        if not slash or not hmac.compare_digest(token.encode(errors="replace"), self._token.encode()):
            return "-"
        return rest

    def answer(self, path: str) -> tuple[str, bytes] | None:
        """Return type and content of what a path names; None where it names nothing, or the token is wrong."""
        match self._below(path).split("/"):
            case [""]:
                ids = [case.id for case in self._cases]
                return HTML, served_page(self._title, ids, self._editor is not None).encode()
            case ["viewer.css"]:
                return STYLE, asset("viewer.css").encode()
            case [("voxels.js" | "viewer.js") as name]:
                return SCRIPT, asset(name).encode()
            case ["editing.js"] if self._editor is not None:
                return SCRIPT, asset("editing.js").encode()
            case ["niivue.js"] if (script := niivue_script()) is not None:
                return SCRIPT, script.read_bytes()
            case ["case", number] if (index := _index(number, len(self._cases))) is not None:
                shown = self._read(index)
                document = {**shown.document(), "picture": picture_of(self._cases[index], shown)}
                if self._editor is not None:
                    document["edit"] = self._editor.document(self._cases[index], shown)
                return JSON, json.dumps(document, allow_nan=False).encode()
            case ["case", number, volume] if (index := _index(number, len(self._cases))) is not None:
                volumes = self._read(index).volumes
                place = _index(volume, len(volumes))
                return None if place is None else (BYTES, volumes[place].nifti())
        return None

    def _read(self, index: int) -> ShownCase:
        """Return a case, read once as long as it is among the last ones that were asked for."""
        with self._reading:
            if index not in self._shown:
                while len(self._shown) >= KEPT_CASES:
                    self._shown.popitem(last=False)
                case = self._cases[index]
                self._shown[index] = read_case(case if self._editor is None else self._editor.with_correction(case))
            self._shown.move_to_end(index)
            return self._shown[index]


def _index(word: str, count: int) -> int | None:
    """Return the number that a part of a path names, from 0; None where it is none, or there are not so many."""
    return int(word) if word.isascii() and word.isdecimal() and len(word) < 9 and int(word) < count else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    viewer: ViewServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that hung up: the terminal is the user's, and its lines name no requests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "segpipe", ""
    timeout = 60
    server: _Server

    def do_GET(self) -> None:
        """Answer with what the path names, or with the status alone."""
        if not self._is_refused():
            self._answer(lambda: self.server.viewer.answer(self.path))

    def do_POST(self) -> None:
        """Take a corrected label map, or answer with the status alone."""
        self.close_connection = True  # what is left of a body that is not read is no further request
        if not self.server.viewer.can_edit:
            self._send(HTTPStatus.NOT_IMPLEMENTED, TEXT, b"nothing can be written\n")
        elif not self._is_refused():
            self._answer(self._taken)

    def _is_refused(self) -> bool:
        """Refuse a request that names another host, or comes from another site."""
        viewer, words = self.server.viewer, b""
        if self.headers.get_all("Host", []) not in [[host] for host in viewer.hosts]:
            words = b"not this host\n"
        else:
            own = [None, *(f"http://{host}" for host in viewer.hosts)]
            here = self.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
            words = b"" if here and self.headers.get("Origin") in own else b"not from another site\n"
        if words:
            self._send(HTTPStatus.FORBIDDEN, TEXT, words)
        return bool(words)

    def _answer(self, find: Callable[[], tuple[str, bytes] | None]) -> None:
        try:
            found = find()
        except Exception as error:  # noqa: BLE001 - one request never ends the server, and the page says what failed
            known = as_segpipe_error(error)
            status = HTTPStatus.BAD_REQUEST if isinstance(error, DataError) else HTTPStatus.INTERNAL_SERVER_ERROR
            parts = [known.message, *([f"found {known.found}"] if known.found and status == 400 else [])]
            return self._send(status, TEXT, visible("; ".join(parts)).encode())
        if found is None:
            self._send(HTTPStatus.NOT_FOUND, TEXT, b"not found\n")
        else:
            self._send(HTTPStatus.OK, *found)

    def _taken(self) -> tuple[str, bytes] | None:
        """Read the body, which has to be as long as it has to be, and save it.

        Raises:
            DataError: it is no label map of the case.
        """
        room = self.server.viewer.room_for(self.path)
        if room is None:
            return None
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal() and int(length) == room):
            raise DataError("the label map has another size than the image", found=length[:20], expected=room)
        try:
            minutes = float(self.headers.get("X-Minutes", "0"))
        except ValueError:
            minutes = 0.0
        content = self.rfile.read(room)
        saved = self.server.viewer.take(self.path, content, minutes if math.isfinite(minutes) else 0.0)
        return None if saved is None else (JSON, json.dumps(saved).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep requests, whose paths hold the token, off the terminal."""
