"""segpipe send: each result arrives once, unchanged, and only what the archive confirms counts."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from archives import cstore_archive, failed, status, stow_archive
from jsonschema import Draft202012Validator
from labelled import ALGORITHM, INFOS, some_labels, write_series
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from segpipe.cli.app import run
from segpipe.common.result_folder import HELD, RESULT, STATE, hashes_of
from segpipe.dicom import transport
from segpipe.dicom.send import SENT
from segpipe.dicom.write.rtstruct import write_rtstruct
from segpipe.dicom.write.seg import write_seg
from segpipe.dicom.write.structured_report import write_sr

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
SEG, LABELMAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
RTSTRUCT, SR = "1.2.840.10008.5.1.4.1.1.481.3", "1.2.840.10008.5.1.4.1.1.88.34"
PLAIN = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
ALL = [(SEG, PLAIN), (LABELMAP, [RLELossless]), (RTSTRUCT, PLAIN), (SR, PLAIN)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of two cases, beside a file under way, a CT slice and a file that is no DICOM."""
    root = tmp_path_factory.mktemp("send")
    series = write_series(root / "in", PatientName="SECRETNAME")
    labels = some_labels(series)
    for case, kind in (("dcm-a", "binary"), ("dcm-b", "labelmap")):
        folder = root / "out" / case
        folder.mkdir(parents=True)
        write_seg(series, labels, INFOS, folder / "seg.dcm", algorithm=ALGORITHM, kind=kind)  # type: ignore[arg-type]
    folder = root / "out" / "dcm-a"
    write_rtstruct(series, labels, INFOS, folder / "rtstruct.dcm", algorithm=ALGORITHM)
    volumes = {info.name: 1.0 for info in INFOS}
    write_sr(series, folder / "seg.dcm", volumes, INFOS, folder / "sr.dcm", algorithm=ALGORITHM)
    (root / "out" / ".partial" / "dcm-c").mkdir(parents=True)
    shutil.copy(folder / "seg.dcm", root / "out" / ".partial" / "dcm-c" / "seg.dcm")
    shutil.copy(series.files[0], folder / "slice.dcm")
    (folder / "notes.dcm").write_text("no DICOM")
    return root / "out"


@pytest.fixture
def results(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("segpipe.dicom.send.sleep", lambda _: None)
    for name in (transport.TOKEN, transport.USER, transport.PASSWORD):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    shutil.copytree(made, tmp_path / "results")
    return tmp_path / "results"


def send(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> Any:
    capsys.readouterr()
    assert run(["send", *map(str, words), "--json"]) == code
    printed = capsys.readouterr()
    assert "SECRETNAME" not in printed.out + printed.err
    document = json.loads(printed.out)
    if "error" not in document:
        Draft202012Validator(json.loads((SCHEMAS / "send.schema.json").read_text())).validate(document)
    return document


def lines(results: Path) -> list[dict[str, Any]]:
    schema = Draft202012Validator(json.loads((SCHEMAS / "sent.schema.json").read_text()))
    found = [json.loads(line) for line in (results / SENT).read_text().splitlines()]
    for line in found:
        schema.validate(line)
    return found


NAMES = ["dcm-a/rtstruct.dcm", "dcm-a/seg.dcm", "dcm-a/sr.dcm", "dcm-b/seg.dcm"]


def test_dicomweb_takes_each_file_once_byte_for_byte(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stow_archive() as archive:
        document = send(capsys, 0, results, "--to", archive.url + "/")
        assert [each["file"] for each in document["files"]] == NAMES
        assert [each["kind"] for each in document["files"]] == ["RTSTRUCT", "SEG", "SR", "SEG"]
        assert document["counts"] == {"sent": 4, "skipped": 0, "failed": 0, "held": 0}
        assert document["passed_over"] == 2
        assert archive.files == [(results / name).read_bytes() for name in NAMES]
        assert set(archive.paths) == {"/dicom-web/studies"}
        again = send(capsys, 0, results, "--to", archive.url)
        assert again["counts"] == {"sent": 0, "skipped": 4, "failed": 0, "held": 0}
        assert len(archive.files) == 4
        forced = send(capsys, 0, results, "--to", archive.url, "--again")
        assert forced["counts"]["sent"] == 4
    assert [line["status"] for line in lines(results)] == ["sent"] * 8


def test_another_archive_and_another_content_are_sent(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stow_archive() as one, stow_archive() as other:
        send(capsys, 0, results, "--to", one.url)
        assert send(capsys, 0, results, "--to", other.url)["counts"]["sent"] == 4
        changed = dcmread(results / NAMES[1])
        changed.SeriesDescription = "changed"
        changed.save_as(results / NAMES[1])
        document = send(capsys, 0, results, "--to", one.url)
        assert [each["file"] for each in document["files"] if each["status"] == "sent"] == [NAMES[1]]


def test_a_line_cut_short_by_a_crash(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stow_archive() as archive:
        send(capsys, 0, results, "--to", archive.url)
        text = (results / SENT).read_text()
        (results / SENT).write_text(text[: len(text) - 30])
        assert send(capsys, 0, results, "--to", archive.url)["counts"] == {
            "sent": 1,
            "skipped": 3,
            "failed": 0,
            "held": 0,
        }
        assert send(capsys, 0, results, "--to", archive.url)["counts"]["skipped"] == 4


def test_trouble_that_passes(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stow_archive(status(503), failed(0xA700), status(429)) as archive:
        document = send(capsys, 0, results, "--to", archive.url)
        assert [each["attempts"] for each in document["files"]] == [4, 1, 1, 1]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (failed(0xA900), "status 409, failure reason 0xA900"),
        (failed(0x0110, 202), "status 202, failure reason 0x0110"),
        (status(400, b"SECRETNAME is odd"), "status 400"),
        (status(302, Location="/login"), "status 302"),
        (status(200, b"<html>please log in</html>", **{"Content-Type": "text/html"}), "does not confirm"),
        (status(200, b"{}", **{"Content-Type": "application/json"}), "does not confirm"),
        (status(200, b'[{"00081199": 1}]'), "does not confirm"),
    ],
)
def test_what_is_not_confirmed_failed(
    results: Path, capsys: pytest.CaptureFixture[str], answer: Any, reason: str
) -> None:
    with stow_archive(answer) as archive:
        document = send(capsys, 4, results, "--to", archive.url)
        assert document["counts"] == {"sent": 3, "skipped": 0, "failed": 1, "held": 0}
        assert reason in document["files"][0]["reason"]
        assert reason in lines(results)[0]["reason"]
        assert document["files"][0]["attempts"] == 1
        assert send(capsys, 0, results, "--to", archive.url)["counts"]["sent"] == 1


def test_denied_is_not_tried_again(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stow_archive(status(401)) as archive:
        document = send(capsys, 4, results, "--to", archive.url)
        assert len(archive.files) == 1
    assert "access denied (status 401)" in document["files"][0]["reason"]
    assert "not tried" in document["files"][3]["reason"]


def test_nobody_there(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # bound, but nobody listens
        for to in (f"http://127.0.0.1:{port}/dicom-web", f"ARCHIVE@127.0.0.1:{port}"):
            document = send(capsys, 4, results, "--to", to, "--retries", 1)
            assert document["counts"]["failed"] == 4
            assert document["files"][0]["attempts"] == 2
            assert document["files"][1]["attempts"] == 0


@pytest.mark.parametrize(
    ("environment", "header"),
    [
        ({transport.TOKEN: "t0ken"}, "Bearer t0ken"),
        ({transport.USER: "me", transport.PASSWORD: "pw"}, "Basic bWU6cHc="),
    ],
)
def test_credentials_come_from_the_environment_and_are_not_written(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any, environment: dict[str, str], header: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with stow_archive() as archive:
        send(capsys, 0, results, "--to", archive.url)
        assert {each["Authorization"] for each in archive.headers} == {header}
    for value in (*environment.values(), header):
        assert value == "me" or value not in (results / SENT).read_text()
    document = send(capsys, 5, results, "--to", "http://pacs.example.org/dicom-web")
    assert "clear text" in document["error"]["message"]


def netrc(path: Path, content: str) -> Path:
    path.write_text(content)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("machine", ["machine pacs.example.org", "default"])
def test_credentials_of_a_netrc_file_never_travel_in_clear(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any, machine: str
) -> None:
    import requests

    def post(*_: object, **__: object) -> None:
        pytest.fail("something was sent")

    file = netrc(tmp_path / "netrc", f"{machine} login me password s3cret\n")
    monkeypatch.setenv("NETRC", str(file))
    with monkeypatch.context() as patch:
        patch.setattr(requests.Session, "send", post)
        document = send(capsys, 5, results, "--to", "http://pacs.example.org/dicom-web")
    assert "clear text" in document["error"]["message"] and "s3cret" not in json.dumps(document)
    file.unlink()  # the hint, followed: without them nothing is refused
    with stow_archive() as archive:
        send(capsys, 0, results, "--to", archive.url)
        assert not any("Authorization" in each for each in archive.headers)


def test_a_netrc_file_in_the_home_folder_is_judged_alike(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    netrc(tmp_path / ".netrc", "machine pacs.example.org login me password s3cret\n")
    monkeypatch.delenv("NETRC")
    monkeypatch.setenv("HOME", str(tmp_path))
    document = send(capsys, 5, results, "--to", "http://pacs.example.org/dicom-web")
    assert "~/.netrc" in document["error"]["found"]
    assert transport.Stow("https://pacs.example.org/dicom-web")._session.auth.password == "s3cret"


def test_credentials_of_a_netrc_file_reach_an_archive_on_this_machine(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("NETRC", str(netrc(tmp_path / "netrc", "machine 127.0.0.1 login me password pw\n")))
    with stow_archive() as archive:
        send(capsys, 0, results, "--to", archive.url)
        assert {each["Authorization"] for each in archive.headers} == {"Basic bWU6cHc="}


def test_what_goes_to_this_machine_takes_no_proxy(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """A proxy would carry token and images over the network."""
    monkeypatch.setenv(transport.TOKEN, "t0ken")
    with stow_archive() as proxy, stow_archive() as archive:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/dicom-web"))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        send(capsys, 0, results, "--to", archive.url)
        assert len(archive.files) == 4 and proxy.files == []


@pytest.mark.parametrize(
    ("proxy", "code"),
    [("http://me:pw@proxy.example.org:3128", 5), ("me:pw@proxy.example.org:3128", 5), ("http://127.0.0.1:9", 4)],
)
def test_the_password_of_a_proxy_never_travels_in_clear(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any, proxy: str, code: int
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, proxy)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    document = send(capsys, code, results, "--to", "https://pacs.example.org/dicom-web", "--retries", 0)
    assert "pw@" not in json.dumps(document)
    if code == 5:
        monkeypatch.setenv("NO_PROXY", "pacs.example.org")  # the hint, followed
        assert transport.Stow("https://pacs.example.org/dicom-web").name


def test_a_redirection_gets_no_credentials(results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv(transport.TOKEN, "t0ken")
    with stow_archive() as elsewhere, stow_archive() as archive:
        archive.script += [status(307, Location=f"{elsewhere.url}/studies")] * 4
        send(capsys, 4, results, "--to", archive.url)
        assert elsewhere.headers == []


@pytest.mark.parametrize("user", ["me:pw@", ":pw@", "me@", "@"])
def test_a_password_in_the_address_is_refused(results: Path, capsys: pytest.CaptureFixture[str], user: str) -> None:
    for scheme in ("https", "http"):
        document = send(capsys, 2, results, "--to", f"{scheme}://{user}pacs.example.org/dicom-web")
        assert "pw" not in json.dumps(document)


@pytest.mark.parametrize("host", ["127.0.0.1.example.org", "localhost.example.org", "10.0.0.1", "[::ffff:10.0.0.1]"])
def test_only_this_machine_is_this_machine(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any, host: str
) -> None:
    monkeypatch.setenv(transport.TOKEN, "t0ken")
    send(capsys, 5, results, "--to", f"http://{host}/dicom-web")
    for here in ("localhost", "127.0.0.1:80", "127.1.2.3", "[::1]:8042"):
        assert transport.Stow(f"http://{here}/dicom-web")._session.trust_env is False


def test_an_untrusted_certificate(results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    import requests

    def refuse(*_: object, **given: Any) -> None:
        raise requests.exceptions.SSLError("certificate of SECRETNAME")

    monkeypatch.setattr(requests.Session, "post", refuse)
    document = send(capsys, 4, results, "--to", "https://pacs.example.org/dicom-web")
    assert document["files"][0]["reason"] == "the server's certificate cannot be trusted"
    assert document["files"][0]["attempts"] == 1


def test_certificates_are_checked_unless_told_otherwise(tmp_path: Path) -> None:
    assert transport.Stow("https://a/b")._session.verify is True
    assert transport.Stow("https://a/b", ca=tmp_path / "ca.pem")._session.verify == str(tmp_path / "ca.pem")
    assert transport.Stow("https://a/b", verify=False)._session.verify is False


def test_c_store_takes_every_kind_unchanged(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with cstore_archive(ALL) as (to, taken):
        document = send(capsys, 0, results, "--to", to)
        assert document["counts"]["sent"] == 4 and document["to"] == to
        for name, dataset in zip(NAMES, taken, strict=True):
            original = dcmread(results / name)
            assert dataset == original
            assert dataset.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID
        assert send(capsys, 0, results, "--to", to)["counts"]["skipped"] == 4


def test_c_store_to_an_archive_that_only_knows_implicit_vr(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    implicit = [(kind, [ImplicitVRLittleEndian]) for kind in (SEG, RTSTRUCT, SR)]
    with cstore_archive(implicit) as (to, taken):
        document = send(capsys, 4, results, "--to", to)
        assert [each["status"] for each in document["files"]] == ["sent", "sent", "sent", "failed"]
        assert "does not take this kind of object or transfer syntax" in document["files"][3]["reason"]
        assert taken[1].PixelData == dcmread(results / NAMES[1]).PixelData
        assert taken[1].file_meta.TransferSyntaxUID == ImplicitVRLittleEndian


def test_c_store_answers(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with cstore_archive(ALL, 0xA700, 0xB000, 0xC123, 0) as (to, taken):
        document = send(capsys, 4, results, "--to", to)
        assert [each["attempts"] for each in document["files"]] == [2, 1, 1, 1]
        assert document["files"][1]["reason"] == "the server answered status 0xC123"
        assert len(taken) == 3


def test_c_store_with_a_wrong_ae_title(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with cstore_archive(ALL) as (to, taken):
        document = send(capsys, 4, results, "--to", to.replace("ARCHIVE", "OTHER"))
        assert "rejected the association" in document["files"][0]["reason"]
        assert document["files"][0]["attempts"] == 1
        assert taken == []


@pytest.mark.parametrize("to", ["pacs", "ftp://x", "AET@host", "AET@host:0", "AET@host:99999", "@host:104", "A\\B@h:1"])
def test_a_destination_that_cannot_be_read(results: Path, capsys: pytest.CaptureFixture[str], to: str) -> None:
    assert send(capsys, 2, results, "--to", to)["error"]["found"] == to
    assert send(capsys, 2, results, "--to", "A@127.0.0.1:1", "--calling", "x" * 17)["error"]["exit_code"] == 2


def test_nothing_to_send(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no DICOM result" in send(capsys, 3, tmp_path, "--to", "A@h:1")["error"]["message"]
    assert send(capsys, 2, tmp_path / "none", "--to", "A@h:1")["error"]["message"] == "no such result folder"
    released = ["--to", "A@h:1", "--release", "dcm-a", "--by", "Doe"]
    assert send(capsys, 2, tmp_path / "none", *released)["error"]["message"] == "no such result folder"


def test_for_a_person(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stow_archive(failed(0xA900)) as archive:
        assert run(["send", str(results), "--to", archive.url]) == 4
    out = capsys.readouterr().out
    assert "3 sent, 0 skipped, 1 failed" in out and "dcm-b" in out and "2 other DICOM files" in out


def hold(results: Path, case_id: str, *names: str, **more: Any) -> dict[str, Any]:
    """Make a case held, as `segpipe predict` leaves it."""
    case = results / case_id
    for other in {path.name for path in case.glob("*.dcm")} - set(names):
        (case / other).unlink()
    (case / HELD).mkdir()
    for name in names:
        (case / name).rename(case / HELD / name)
    files = {name.partition(".")[0]: f"{HELD}/{name}" for name in names}
    result = {"id": case_id, "decision": "hold", "reasons": ["predicted Dice of liver 0.41, below 0.5"]}
    result |= {"files": files, "sha256": hashes_of(case), "flags": {}, **more}
    (case / RESULT).write_text(json.dumps(result))
    return result


def test_a_held_case_is_not_sent_whatever_is_asked_for(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hold(results, "dcm-a", "seg.dcm", "sr.dcm")
    with stow_archive() as archive:
        document = send(capsys, 6, results, "--to", archive.url, "--again")
        assert document["counts"] == {"sent": 1, "skipped": 0, "failed": 0, "held": 2}
        held = [each for each in document["files"] if each["status"] == "held"]
        assert [(each["case_id"], each["file"]) for each in held] == [
            ("dcm-a", "dcm-a/held/seg.dcm"),
            ("dcm-a", "dcm-a/held/sr.dcm"),
        ]
        assert {each["reason"] for each in held} == {"predicted Dice of liver 0.41, below 0.5"}
        assert "held: predicted Dice" in held[0]["remarks"][0]
        for name in ("seg.dcm", "sr.dcm"):  # moved by hand, it is held all the same
            (results / "dcm-a" / HELD / name).rename(results / "dcm-a" / name)
        assert send(capsys, 6, results, "--to", archive.url)["counts"]["held"] == 2
        (results / "dcm-a" / RESULT).write_text("{")
        document = send(capsys, 6, results, "--to", archive.url)
        assert "cannot be read" in document["files"][0]["reason"]
        assert len(archive.files) == 1
        archive.script.append(failed(0xA900))
        assert send(capsys, 4, results, "--to", archive.url, "--again")["counts"]["held"] == 2


def test_what_was_sent_before_a_case_was_held_is_said_each_time(results: Path, capsys: Any) -> None:
    with stow_archive() as archive, stow_archive() as other:
        assert send(capsys, 0, results, "--to", archive.url)["superseded"] == []
        before = {line["kind"]: line["sop_instance_uid"] for line in lines(results) if line["case_id"] == "dcm-a"}
        for name in ("seg.dcm", "sr.dcm"):  # other reasons are another instance
            changed = dcmread(results / "dcm-a" / name)
            changed.SOPInstanceUID = changed.file_meta.MediaStorageSOPInstanceUID = f"{changed.SOPInstanceUID}1"
            changed.save_as(results / "dcm-a" / name)
        hold(results, "dcm-a", "seg.dcm", "sr.dcm")  # the RTSTRUCT was not asked for again
        document = send(capsys, 6, results, "--to", archive.url)
        found = {each["kind"]: each["sop_instance_uid"] for each in document["superseded"]}
        assert found == before and {each["case_id"] for each in document["superseded"]} == {"dcm-a"}
        assert document["superseded"][0]["time"] == lines(results)[0]["time"]
        assert run(["send", str(results), "--to", archive.url]) == 6
        said = " ".join(capsys.readouterr().out.split())
        assert "dcm-a: an earlier RTSTRUCT and SEG and SR was sent there on 2" in said
        assert "the case is held now: see to it in the archive" in said
        assert send(capsys, 6, results, "--to", other.url)["superseded"] == []
        words = ("--to", archive.url, "--release", "dcm-a", "--by", "Doe")
        assert len(send(capsys, 0, results, *words)["superseded"]) == 3


def test_the_same_instance_of_another_time_is_no_earlier_one(results: Path, capsys: Any) -> None:
    with stow_archive() as archive:
        send(capsys, 0, results, "--to", archive.url)
        written_again = dcmread(results / NAMES[0])
        written_again.StructureSetTime = "000000"
        written_again.save_as(results / NAMES[0])
        document = send(capsys, 0, results, "--to", archive.url)
        assert (document["counts"]["sent"], document["superseded"]) == (1, [])


def test_a_named_person_releases_a_case(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = hold(results, "dcm-a", "seg.dcm", "sr.dcm")
    with stow_archive() as archive:
        document = send(capsys, 0, results, "--to", archive.url, "--release", "dcm-a", "--by", "Doe^Jane")
        assert document["counts"] == {"sent": 4, "skipped": 0, "failed": 0, "held": 0}
        names = [f"dcm-a/{name}" for name in ("release.dcm", "seg.dcm", "sr.dcm")]
        assert [each["file"] for each in document["files"]][:3] == names
        again = send(capsys, 0, results, "--to", archive.url, "--release", "dcm-a", "--by", "Roe^Richard")
        assert again["counts"] == {"sent": 0, "skipped": 4, "failed": 0, "held": 0}
    case = results / "dcm-a"
    assert not (case / HELD).exists()
    result = json.loads((case / RESULT).read_text())
    assert result["files"] == {"seg": "seg.dcm", "sr": "sr.dcm"} and result["decision"] == "hold"
    assert result["sha256"] == hashes_of(case) and result["released"]["report"] == "release.dcm"
    assert result["sha256"]["seg.dcm"] == before["sha256"]["held/seg.dcm"]
    (event,) = [json.loads(line) for line in (results / STATE).read_text().splitlines()]
    Draft202012Validator(json.loads((SCHEMAS / "prediction_event.schema.json").read_text())).validate(event)
    assert (event["event"], event["id"], event["by"]) == ("released", "dcm-a", "Doe^Jane")
    release = dcmread(case / "release.dcm")
    assert "Doe^Jane" in str(release.ContentSequence) and release.VerificationFlag == "UNVERIFIED"
    assert "Doe" not in json.dumps(result)


def test_a_release_that_was_interrupted_is_finished_by_another(results: Path, capsys: Any, monkeypatch: Any) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    hold(results, "dcm-a", "seg.dcm", "sr.dcm")
    with monkeypatch.context() as patch:
        patch.setattr("segpipe.dicom.held.write_json", interrupt)
        assert run(["send", str(results), "--to", "A@127.0.0.1:1", "--release", "dcm-a", "--by", "Doe"]) == 130
    with stow_archive() as archive:
        assert send(capsys, 6, results, "--to", archive.url)["counts"]["held"] == 3
        counts = send(capsys, 0, results, "--to", archive.url, "--release", "dcm-a", "--by", "Doe")["counts"]
        assert counts == {"sent": 3, "skipped": 1, "failed": 0, "held": 0}


def test_sending_a_release_that_was_interrupted_goes_on_with_the_same_command(
    results: Path, capsys: Any, monkeypatch: Any
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    hold(results, "dcm-a", "seg.dcm", "sr.dcm")
    with stow_archive() as archive:
        command = ["send", str(results), "--to", archive.url, "--release", "dcm-a", "--by", "Doe"]
        with monkeypatch.context() as patch:
            patch.setattr("segpipe.dicom.send_results", interrupt)
            assert run(command) == 130
        assert "the same command" in capsys.readouterr().err
        assert run(command) == 0
        assert "dcm-a was released before" in capsys.readouterr().err and len(archive.files) == 4


def test_the_hint_on_a_case_that_is_not_held_works_when_followed(results: Path, capsys: Any) -> None:
    (results / "dcm-a" / RESULT).write_text(json.dumps({"id": "dcm-a", "decision": "ok", "reasons": []}))
    with stow_archive() as archive:
        words = ("--to", archive.url, "--release", "dcm-a", "--by", "Doe")
        assert send(capsys, 2, results, *words)["error"]["hint"] == "leave --release dcm-a and --by out"
        assert send(capsys, 0, results, *words[:2])["counts"]["failed"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--release", "dcm-a"), "a release names a case and a person"),
        (("--by", "Doe"), "a release names a case and a person"),
        (("--release", "dcm-a", "--by", " "), "not the name of a person"),
        (("--release", "dcm-a", "--by", " ^ "), "not the name of a person"),
        (("--release", "dcm-b", "--by", "Doe"), "there is no such case"),
        (("--release", "../results/dcm-a", "--by", "Doe"), "there is no such case"),
    ],
)
def test_what_is_no_release(results: Path, capsys: Any, words: tuple[str, ...], message: str) -> None:
    hold(results, "dcm-a", "seg.dcm")
    assert send(capsys, 2, results, "--to", "A@127.0.0.1:1", *words)["error"]["message"] == message
    assert (results / "dcm-a" / HELD / "seg.dcm").is_file() and not (results / STATE).exists()


@pytest.mark.parametrize(
    ("to", "words", "message"),
    [
        ("pacs", (), "this destination cannot be read"),
        ("A@127.0.0.1:1", ("--calling", "x" * 17), "this AE title cannot be used"),
        ("https://a@b/c", (), "a DICOMweb address has no user"),
        ("https://a/b", ("--ca", "none.pem"), "no such file of certificates"),
        ("A@127.0.0.1:1", ("--release", "dcm-c"), "there is no such case"),
        ("A@127.0.0.1:1", ("--release", "dcm-b"), "the case is not held"),
    ],
)
def test_nothing_is_released_before_all_that_was_asked_is_judged(
    results: Path, capsys: Any, to: str, words: tuple[str, ...], message: str
) -> None:
    hold(results, "dcm-a", "seg.dcm")
    (results / "dcm-b" / RESULT).write_text(json.dumps({"id": "dcm-b", "decision": "ok", "reasons": []}))
    error = send(capsys, 2, results, "--to", to, "--release", "dcm-a", "--by", "Doe", *words)["error"]
    assert message in error["message"]
    assert (results / "dcm-a" / HELD / "seg.dcm").is_file() and not (results / STATE).exists()


def test_files_of_others_beside_held_results_do_not_hinder_a_release(results: Path, capsys: Any) -> None:
    hold(results, "dcm-a", "seg.dcm", "sr.dcm")
    for name in (".DS_Store", "screenshot.png"):
        (results / "dcm-a" / HELD / name).write_bytes(b"0")
    with stow_archive() as archive:
        words = ("--to", archive.url, "--release", "dcm-a", "--by", "Doe")
        assert send(capsys, 0, results, *words)["counts"]["sent"] == 4
    result = json.loads((results / "dcm-a" / RESULT).read_text())
    assert result["released"] and not [name for name in result["sha256"] if "screenshot" in name]
    assert (results / "dcm-a" / HELD / "screenshot.png").is_file()
    assert [json.loads(line)["event"] for line in (results / STATE).read_text().splitlines()] == ["released"]


def test_a_case_that_is_computed_anew_meanwhile_stays_held(results: Path, capsys: Any, monkeypatch: Any) -> None:
    before = hold(results, "dcm-a", "seg.dcm")

    def computed_anew(path: Path, line: Any) -> None:
        (results / "dcm-a" / RESULT).write_text(json.dumps({**before, "volumes_ml": {"liver": 3.0}}))

    monkeypatch.setattr("segpipe.dicom.held.append_line", computed_anew)
    words = ("--to", "A@127.0.0.1:1", "--release", "dcm-a", "--by", "Doe")
    assert "computed anew" in send(capsys, 3, results, *words)["error"]["message"]
    assert "released" not in json.loads((results / "dcm-a" / RESULT).read_text())
    with stow_archive() as archive:
        assert send(capsys, 6, results, "--to", archive.url)["counts"]["held"] == 2


def test_a_held_result_that_was_changed_is_not_released(results: Path, capsys: Any) -> None:
    hold(results, "dcm-a", "seg.dcm")
    with (results / "dcm-a" / HELD / "seg.dcm").open("ab") as stream:
        stream.write(b"  ")
    document = send(capsys, 3, results, "--to", "A@127.0.0.1:1", "--release", "dcm-a", "--by", "Doe")
    assert "not the file that was written" in document["error"]["message"]
    assert (results / "dcm-a" / HELD / "seg.dcm").is_file()


def test_a_case_may_be_called_held(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / "dcm-b").rename(results / HELD)
    (results / HELD / RESULT).write_text(json.dumps({"decision": "ok", "reasons": []}))
    with stow_archive() as archive:
        document = send(capsys, 0, results, "--to", archive.url)
        assert "held" in [each["case_id"] for each in document["files"]] and document["counts"]["sent"] == 4
