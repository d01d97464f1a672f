"""Small archives on loopback: STOW-RS as plain HTTP with scripted answers, and a C-STORE provider."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from socketserver import BaseServer
from threading import Thread
from typing import Any

from pydicom import dcmread
from pynetdicom import AE, evt
from pynetdicom.transport import ThreadedAssociationServer

POLL_S = 0.02  # in which a server notices that it is to end
Answer = tuple[int, dict[str, str], bytes]
JSON = {"Content-Type": "application/dicom+json"}


@dataclass
class StowArchive:
    """What arrived, and how to answer: each request takes the next of `script`, then all are stored."""

    url: str = ""
    script: list[Callable[[str], Answer]] = field(default_factory=list)
    files: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


def stored(uid: str) -> Answer:
    return 200, JSON, json.dumps({"00081199": {"vr": "SQ", "Value": [_named(uid)]}}).encode()


def failed(code: int, status: int = 409) -> Callable[[str], Answer]:
    def answer(uid: str) -> Answer:
        item = {**_named(uid), "00081197": {"vr": "US", "Value": [code]}}
        return status, JSON, json.dumps({"00081198": {"vr": "SQ", "Value": [item]}}).encode()

    return answer


def status(code: int, body: bytes = b"", **headers: str) -> Callable[[str], Answer]:
    return lambda uid: (code, headers, body)


def _named(uid: str) -> dict[str, Any]:
    return {"00081155": {"vr": "UI", "Value": [uid]}}


@contextmanager
def stow_archive(*script: Callable[[str], Answer]) -> Iterator[StowArchive]:
    """A STOW-RS server on loopback."""
    archive = StowArchive(script=list(script))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            boundary = self.headers["Content-Type"].split('boundary="')[1].split('"')[0].encode()
            part = body.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--" + boundary + b"--", 1)[0]
            archive.files.append(part)
            archive.headers.append(dict(self.headers))
            archive.paths.append(self.path)
            answer = archive.script.pop(0) if archive.script else stored
            code, headers, content = answer(str(dcmread(BytesIO(part)).SOPInstanceUID))
            self.send_response(code)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(POLL_S,), daemon=True).start()
    archive.url = f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    try:
        yield archive
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def cstore_archive(contexts: list[tuple[str, list[str]]], *codes: int) -> Iterator[tuple[str, list[Any]]]:
    """A C-STORE provider on loopback: its address, and the datasets that it took; `codes` are its first answers."""
    taken: list[Any] = []
    script = list(codes)

    def on_store(event: Any) -> int:
        code = script.pop(0) if script else 0
        if code in (0, 0xB000):
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            taken.append(dataset)
        return code

    entity = AE(ae_title="ARCHIVE")
    for sop_class, syntaxes in contexts:
        entity.add_supported_context(sop_class, syntaxes)
    entity.require_called_aet = True
    handlers: Any = [(evt.EVT_C_STORE, on_store)]
    server = entity.make_server(("127.0.0.1", 0), evt_handlers=handlers, server_class=ThreadedAssociationServer)
    Thread(target=server.serve_forever, args=(POLL_S,), daemon=True).start()
    try:
        yield f"ARCHIVE@127.0.0.1:{server.socket.getsockname()[1]}", taken  # type: ignore[union-attr]
    finally:
        BaseServer.shutdown(server)  # its own forgets it among the entity's, which made it itself
        server.server_close()
