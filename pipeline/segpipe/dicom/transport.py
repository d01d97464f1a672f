"""How a DICOM file reaches an archive: DICOMweb (STOW-RS, PS3.18 section 10.5) or C-STORE (PS3.4 annex B).

What a server answers may quote a patient, so of an answer only status codes and failure reasons are kept.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from segpipe.dicom.privacy import kind_of, no_header_text
from segpipe.errors import RefusedError, UsageError

CONNECT_S, ANSWER_S = 15, 300
RETRY_HTTP = {408, 425, 429, 500, 502, 503, 504}
OUT_OF_RESOURCES = range(0xA700, 0xA800)
STORED_WITH_WARNING = {0xB000, 0xB006, 0xB007}
TOKEN, USER, PASSWORD = "SEGPIPE_DICOMWEB_TOKEN", "SEGPIPE_DICOMWEB_USER", "SEGPIPE_DICOMWEB_PASSWORD"


@dataclass(frozen=True)
class DicomFile:
    """A file to send, by what the protocols need to know of it."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


class NotStoredError(Exception):
    """The archive does not have the file.

    Args:
        reason: one sentence without header text.
        again: whether trying again may help.
        unreachable: nobody answers, so other files will not fare better.
    """

    def __init__(self, reason: str, *, again: bool = False, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.again, self.unreachable = reason, again, unreachable


class Archive(Protocol):
    """Where files are sent; `name` is written down, so it holds no credentials."""

    name: str

    def store(self, file: DicomFile) -> None:
        """Store one file; raises `NotStoredError` where the archive does not confirm it."""

    def close(self) -> None:
        """End what was opened."""


def open_archive(
    to: str, files: Iterable[DicomFile], *, calling: str = "SEGPIPE", ca: Path | None = None, verify: bool = True
) -> Archive:
    """Return the archive that a destination names.

    Args:
        to: ``https://HOST/dicom-web`` or ``AET@HOST:PORT``.
        files: what will be sent; C-STORE agrees on kinds beforehand.
        calling: our AE title.
        ca: certificates to trust instead of the system's.
        verify: check the server's certificate.

    Raises:
        UsageError: it is neither, or the file of certificates is not there.
        RefusedError: a password or token would travel in clear text.
    """
    if ca is not None and not ca.exists():
        raise UsageError("no such file of certificates", path=ca, hint="check --ca")
    if re.match(r"https?://", to):
        return Stow(to, ca, verify)
    parts = re.fullmatch(r"(?P<aet>[^@\\]{1,16})@(?P<host>\[[0-9a-fA-F:]+\]|[\w.-]+):(?P<port>\d{1,5})", to)
    if parts is None or not 0 < int(parts["port"]) < 65536:
        raise UsageError(
            "this destination cannot be read", found=to, expected="https://HOST/dicom-web or AET@HOST:PORT"
        )
    return CStore(parts["aet"], parts["host"].strip("[]"), int(parts["port"]), calling, files)


class Stow:
    """STOW-RS, one file a request. Redirects are not followed: a login page must not pass for an archive."""

    def __init__(self, url: str, ca: Path | None = None, verify: bool = True) -> None:
        import requests

        parts = urlsplit(url)
        if "@" in parts.netloc or parts.query or parts.fragment or not parts.hostname:
            raise UsageError(
                "a DICOMweb address has no user, query or fragment",
                expected="https://HOST/dicom-web",
                hint=f"give credentials as {TOKEN}, or {USER} and {PASSWORD}, or in ~/.netrc",
            )
        self.name = url.rstrip("/").removesuffix("/studies")
        self._session = requests.Session()
        self._session.verify = str(ca) if ca else verify
        self._session.auth = _credentials(url)
        self._session.trust_env = not _stays_here(url)  # else a proxy may carry to the network what is meant to stay

    def store(self, file: DicomFile) -> None:
        import requests

        boundary = f"segpipe-{file.sop_instance_uid}"
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary="{boundary}"',
            "Accept": "application/dicom+json",
        }
        try:
            answer = self._session.post(
                f"{self.name}/studies",
                data=head + file.path.read_bytes() + f"\r\n--{boundary}--\r\n".encode(),
                headers=headers,
                timeout=(CONNECT_S, ANSWER_S),
                allow_redirects=False,
            )
        except requests.exceptions.SSLError as error:
            raise NotStoredError("the server's certificate cannot be trusted", unreachable=True) from error
        except (requests.ConnectionError, requests.Timeout) as error:
            raise NotStoredError(f"no answer ({kind_of(error)})", again=True, unreachable=True) from error
        except requests.RequestException as error:
            raise NotStoredError(f"the request failed ({kind_of(error)})") from error
        _confirm(answer, file.sop_instance_uid)

    def close(self) -> None:
        self._session.close()


def _credentials(url: str) -> Callable[[Any], Any]:
    """Return what adds the credentials to a request: the one place where it is decided whether they may travel.

    They come from the environment, else from a netrc file. What is returned also keeps `requests` from looking for
    some itself.

    Raises:
        RefusedError: these, or those of a proxy, would travel in clear text.
    """
    from requests.auth import HTTPBasicAuth
    from requests.utils import get_environ_proxies, get_netrc_auth, select_proxy

    token, user, password = (os.environ.get(name) for name in (TOKEN, USER, PASSWORD))
    source, basic = f"{TOKEN} or {USER}", (user, password or "") if user else None
    if not token and basic is None:
        source, basic = os.environ.get("NETRC") or "~/.netrc", get_netrc_auth(url)
    if (token or basic) and not _is_safe(url):
        raise RefusedError(
            "credentials would be sent in clear text",
            found=f"credentials of {source}, and an address with http://",
            expected="an address with https://",
            hint=f"send to https://, or take them away for this archive: {source}",
        )
    proxy = None if _stays_here(url) else select_proxy(url, get_environ_proxies(url))
    if proxy and "@" in proxy and not _is_safe(proxy if "://" in proxy else f"http://{proxy}"):
        raise RefusedError(
            "the proxy's credentials would be sent in clear text",
            found="a proxy with http://, and credentials in its address",
            expected="a proxy with https://, or without credentials",
            hint="change HTTPS_PROXY or HTTP_PROXY, or set NO_PROXY to the archive's host",
        )
    if basic is not None and not token:
        return HTTPBasicAuth(*basic)

    def sign(request: Any) -> Any:
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        return request

    return sign


def _is_safe(url: str) -> bool:
    """Return whether nobody on the network can read what is sent to an address."""
    return urlsplit(url).scheme == "https" or _is_loopback(url)


def _stays_here(url: str) -> bool:
    return urlsplit(url).scheme == "http" and _is_loopback(url)


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _confirm(answer: Any, uid: str) -> None:
    """Raise unless the answer names the instance as stored (PS3.18 section I.2)."""
    stored, failed = _uids_of(answer)
    if answer.status_code in (200, 202) and uid in stored and uid not in failed:
        return
    code = failed.get(uid)
    words = f"status {answer.status_code}" + ("" if code is None else f", failure reason 0x{code:04X}")
    if answer.status_code in (401, 403):
        raise NotStoredError(f"access denied ({words})", unreachable=True)
    if answer.status_code in (200, 202) and not failed:
        raise NotStoredError(f"the server does not confirm that it stored the file ({words})")
    again = answer.status_code in RETRY_HTTP or code in OUT_OF_RESOURCES
    raise NotStoredError(f"the server did not store the file ({words})", again=again)


def _uids_of(answer: Any) -> tuple[set[str], dict[str, int]]:
    """Return the instances that were stored, and those that were not with the reason's code."""
    try:
        document = answer.json()
        stored = {item["00081155"]["Value"][0] for item in document.get("00081199", {}).get("Value", [])}
        failed = {
            item["00081155"]["Value"][0]: int(item.get("00081197", {}).get("Value", [0])[0])
            for item in document.get("00081198", {}).get("Value", [])
        }
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return set(), {}
    return stored, failed


class CStore:
    """C-STORE over one association, opened anew where it was lost."""

    def __init__(self, aet: str, host: str, port: int, calling: str, files: Iterable[DicomFile]) -> None:
        from pynetdicom import AE

        self.name = f"{aet}@{host}:{port}"
        self._peer = (host, port, aet)
        try:
            self._entity = AE(ae_title=calling)
        except ValueError as error:
            raise UsageError("this AE title cannot be used", found=calling, expected="1 to 16 letters") from error
        self._entity.connection_timeout = self._entity.acse_timeout = CONNECT_S
        self._entity.dimse_timeout = self._entity.network_timeout = ANSWER_S
        for sop_class, syntaxes in sorted(_contexts(files)):
            self._entity.add_requested_context(sop_class, list(syntaxes))
        self._association: Any = None

    def store(self, file: DicomFile) -> None:
        with no_header_text(), _reading(file):
            association = self._open()
            try:
                status = association.send_c_store(dcmread(file.path))
            except ValueError as error:  # no agreed presentation context
                raise NotStoredError("the server does not take this kind of object or transfer syntax") from error
            except RuntimeError as error:
                raise NotStoredError("the association was lost", again=True) from error
        code = status.get("Status") if status else None
        if code is None:
            self.close()
            raise NotStoredError("no answer to C-STORE", again=True)
        if code and code not in STORED_WITH_WARNING:
            raise NotStoredError(f"the server answered status 0x{code:04X}", again=code in OUT_OF_RESOURCES)

    def _open(self) -> Any:
        if self._association is not None and self._association.is_established:
            return self._association
        host, port, aet = self._peer
        self._association = self._entity.associate(host, port, ae_title=aet)
        if self._association.is_established:
            return self._association
        if self._association.is_rejected:
            raise NotStoredError("the server rejected the association (AE titles?)", unreachable=True)
        raise NotStoredError("no association with the server", again=True, unreachable=True)

    def close(self) -> None:
        with no_header_text():
            if self._association is not None and self._association.is_established:
                self._association.release()
        self._association = None


def _contexts(files: Iterable[DicomFile]) -> set[tuple[str, tuple[str, ...]]]:
    """Return SOP classes with the transfer syntaxes to offer: a file's own, and implicit as well for what is explicit.

    What is implicit stays so, which every archive takes: it may hold values that an explicit VR has no room for.
    """
    explicit = str(ExplicitVRLittleEndian)
    also = {explicit: (str(ImplicitVRLittleEndian),)}
    syntaxes = {(file.sop_class_uid, file.transfer_syntax_uid) for file in files}
    return {(sop_class, (own, *also.get(own, ()))) for sop_class, own in syntaxes}


@contextlib.contextmanager
def _reading(file: DicomFile) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NotStoredError(f"the file cannot be read ({kind_of(error)})") from error
