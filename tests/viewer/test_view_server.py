"""The server gives out what the page needs, to whoever has the token, and nothing else."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
from collections.abc import Iterator

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_results import Tiny, write_results

from segpipe.errors import UsageError
from segpipe.viewer import ViewServer, find_viewed


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return write_results(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(tiny: Tiny) -> Iterator[ViewServer]:
    with ViewServer(find_viewed(tiny.out), "Results <b>") as server:
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        yield server
        server.stop()
        thread.join()


def ask(
    server: ViewServer, path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    link.request(method, path, headers=headers or {})
    answer = link.getresponse()
    content = answer.read()
    link.close()
    return answer.status, dict(answer.getheaders()), content


def token(server: ViewServer) -> str:
    return server.url.split("/")[3]


def test_the_page_and_a_case_are_given_out(server: ViewServer, tiny: Tiny) -> None:
    status, headers, page = ask(server, f"/{token(server)}/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b"Results &lt;b&gt;" in page and b"case_1" in page and b"http" not in page.replace(b"http-equiv", b"")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert (headers["Cache-Control"], headers["Referrer-Policy"]) == ("no-store", "no-referrer")
    document = json.loads(ask(server, f"/{token(server)}/case/0")[2])
    assert [volume["name"] for volume in document["volumes"]] == ["image", "prediction", "entropy"]
    content = ask(server, f"/{token(server)}/case/0/1")[2]
    own = nib.load(tiny.out / "case_1" / "segmentation.nii.gz")
    given_out = nib.Nifti1Image.from_stream(io.BytesIO(content))
    np.testing.assert_array_equal(np.asarray(given_out.dataobj), np.asarray(own.dataobj))
    np.testing.assert_allclose(given_out.affine, own.affine, atol=1e-5)


def test_it_listens_on_loopback_alone(server: ViewServer) -> None:
    assert server._http.server_address[0] == "127.0.0.1"
    assert len(token(server)) >= 32
    with ViewServer([], "another") as other:
        assert token(other) != token(server)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/viewer.js",
        "/wrong/",
        "/{token}",
        "/{token}x/",
        "/{token}/../{token}/viewer.html",
        "/{token}/viewer.html",
        "/{token}/../../etc/passwd",
        "/{token}/%2e%2e/%2e%2e/etc/passwd",
        "/{token}/case/../cases.py",
        "/{token}/case/1",
        "/{token}/case/-1",
        "/{token}/case/0/3",
        "/{token}/case/0/%31",
        "/{token}/case/%D9%A3",
        "/{token}/case/0?x",
    ],
)
def test_other_paths_name_nothing(server: ViewServer, path: str) -> None:
    wanted = path.format(token=token(server))
    status, _, content = ask(server, wanted)
    assert (status, content) == (404, b"not found\n")


@settings(max_examples=40)
@given(st.text())
def test_no_path_without_the_token_names_anything(server: ViewServer, text: str) -> None:
    assert server.answer("/" + text) is None
    assert server.answer(f"/{token(server)}/../{text}") is None
    assert server.answer(f"/{token(server)}/page/{text}") is None


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:80"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1.evil.example:{port}"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_other_hosts_and_other_sites_are_refused(server: ViewServer, headers: dict[str, str]) -> None:
    given_headers = {name: value.format(port=server.port) for name, value in headers.items()}
    assert ask(server, f"/{token(server)}/case/0", headers=given_headers)[0] == 403


def test_only_reading_is_known(server: ViewServer) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
        assert ask(server, f"/{token(server)}/", method)[0] == 501


def test_a_request_that_is_none_does_not_end_it(server: ViewServer, capfd: pytest.CaptureFixture[str]) -> None:
    for words in (b"\0\0\0\r\n\r\n", b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as link:
            link.sendall(words)
            assert link.recv(20)
    assert ask(server, f"/{token(server)}/")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_failure_of_ours_is_an_answer(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr("segpipe.viewer.server.read_case", fail)
    with ViewServer(find_viewed(tiny.out), "r") as server:
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        status, _, content = ask(server, f"/{token(server)}/case/0")
        assert (status, b"this is a bug in segpipe" in content) == (500, True)
        server.stop()
        thread.join()


def test_a_case_is_read_once_while_it_is_looked_at(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from segpipe.viewer import volumes

    read: list[str] = []

    def count(case: object) -> object:
        read.append(case.id)  # type: ignore[attr-defined]
        return volumes.read_case(case)  # type: ignore[arg-type]

    monkeypatch.setattr("segpipe.viewer.server.read_case", count)
    (case,) = find_viewed(tiny.out)
    with ViewServer([case] * 3, "r") as server:
        for path in ("case/0", "case/0/0", "case/0/1", "case/1", "case/0/2", "case/2", "case/1"):
            assert server.answer(f"/{token(server)}/{path}") is not None
    assert len(read) == 4  # 0, 1, 2, and 1 again after it had to make room


def test_a_port_that_is_taken_is_said(server: ViewServer) -> None:
    with pytest.raises(UsageError, match="cannot listen"):
        ViewServer([], "r", server.port)
