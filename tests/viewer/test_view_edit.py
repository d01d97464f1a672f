"""What may be written through the viewer's server, and what may not."""

from __future__ import annotations

import http.client
import json
import shlex
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny_results import LEFT, RIGHT, Tiny, ras_affine, save, write_results

from segpipe.cli.app import run
from segpipe.common.files import sha256_of
from segpipe.data import import_corrections
from segpipe.errors import USAGE, UsageError
from segpipe.viewer import Editor, ViewServer, find_viewed


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return write_results(tmp_path)


@contextmanager
def served(tiny: Tiny, folder: Path | None, of_manifest: bool = False) -> Iterator[ViewServer]:
    editor = None if folder is None else Editor(folder, "reader-2")
    with ViewServer(find_viewed(tiny.truth if of_manifest else tiny.out), "Edit", editor=editor) as server:
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        yield server
        server.stop()
        thread.join()


def send(server: ViewServer, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    link.request(
        "POST", f"/{server.url.split('/')[3]}/{path}", body, {k.replace("_", "-"): v for k, v in headers.items()}
    )
    answer = link.getresponse()
    found = answer.status, answer.read()
    link.close()
    return found


def stored(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def as_sent(voxels: np.ndarray) -> bytes:
    return voxels.astype(np.uint8).tobytes(order="F")


def test_a_label_map_is_saved_whole_with_who_drew_it(tiny: Tiny, tmp_path: Path) -> None:
    start = tiny.out / "case_1/segmentation.nii.gz"
    before, voxels = sha256_of(start), stored(start).copy()
    voxels[0, 0, :3] = RIGHT
    with served(tiny, tmp_path / "back") as server:
        status, answer = send(server, "case/0/correction", as_sent(voxels), X_Minutes="2.5")
        assert (status, json.loads(answer)) == (200, {"file": "case_1.nii.gz", "changed_voxels": 3})
        about = json.loads(server.answer(server.url.split("/", 3)[3] + "case/0")[1])
        assert [volume["name"] for volume in about["volumes"]][-1] == "correction"
        assert about["edit"]["begins"] == len(about["volumes"]) - 1  # it goes on from there
    saved = tmp_path / "back/case_1.nii.gz"
    assert np.array_equal(stored(saved), voxels) and sha256_of(start) == before
    assert np.allclose(nib.load(saved).affine, nib.load(start).affine, atol=1e-5)
    (line,) = map(json.loads, (tmp_path / "back/corrections.jsonl").read_text().splitlines())
    assert {**line, "date": ""} == {
        "id": "case_1",
        "annotator": "reader-2",
        "date": "",
        "sha256": sha256_of(saved),
        "start_sha256": before,
        "minutes": 2.5,
    }
    taken = import_corrections(tiny.out, tmp_path / "back", output=tmp_path / "new/manifest.json", modality=["CT"])
    (made,) = taken.manifest.training[0].history or []
    assert (made.annotator, made.minutes, made.changed_voxels) == ("reader-2", 2.5, 3)


def test_the_minutes_of_all_sessions_are_one_sum(tiny: Tiny, tmp_path: Path) -> None:
    voxels = stored(tiny.out / "case_1/segmentation.nii.gz").copy()
    for session in (["2.5", "0.25"], ["1.25"]):
        with served(tiny, tmp_path / "back") as server:
            for minutes in session:
                voxels[0, 0, 0] = (voxels[0, 0, 0] + 1) % 2
                assert send(server, "case/0/correction", as_sent(voxels), X_Minutes=minutes)[0] == 200
    lines = [json.loads(line) for line in (tmp_path / "back/corrections.jsonl").read_text().splitlines()]
    assert [line["minutes"] for line in lines] == [2.5, 2.75, 4.0]
    taken = import_corrections(tiny.out, tmp_path / "back", output=tmp_path / "new/manifest.json", modality=["CT"])
    (made,) = taken.manifest.training[0].history or []
    assert made.minutes == 4.0
    (tmp_path / "back/case_1.nii.gz").unlink()  # begun anew
    with served(tiny, tmp_path / "back") as server:
        assert send(server, "case/0/correction", as_sent(voxels), X_Minutes="1")[0] == 200
    assert json.loads((tmp_path / "back/corrections.jsonl").read_text().splitlines()[-1])["minutes"] == 1


def test_what_is_no_label_map_of_the_case_is_not_saved(tiny: Tiny, tmp_path: Path) -> None:
    good = stored(tiny.out / "case_1/segmentation.nii.gz")
    odd = good.copy()
    odd[0, 0, 0] = 9
    with served(tiny, tmp_path / "back") as server:
        assert send(server, "case/0/correction", as_sent(odd))[0] == 400
        status, words = send(server, "case/0/correction", as_sent(good)[:-1])
        assert status == 400 and b"another size than the image" in words
        assert send(server, "case/0/correction", b"")[0] == 400
        for path in (
            "case/1/correction",
            "case/0/0",
            "case/0/correction/x",
            "../case/0/correction",
            "case/-1/correction",
        ):
            assert send(server, path, as_sent(good))[0] == 404, path
        assert send(server, "case/0/correction", as_sent(good), Origin="http://evil.example")[0] == 403
        assert send(server, "case/0/correction", as_sent(good), Sec_Fetch_Site="cross-site")[0] == 403
        assert send(server, "case/0/correction", as_sent(good), Host="evil.example")[0] == 403
        assert send(server, "case/0/correction", as_sent(good), X_Minutes="nan")[0] == 200
    (line,) = map(json.loads, (tmp_path / "back/corrections.jsonl").read_text().splitlines())
    assert line["minutes"] == 0
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["case_1.nii.gz", "corrections.jsonl"]


def test_without_an_editor_nothing_can_be_written(tiny: Tiny) -> None:
    good = stored(tiny.out / "case_1/segmentation.nii.gz")
    with served(tiny, None) as server:
        assert send(server, "case/0/correction", as_sent(good))[0] == 501
        page = server.answer(server.url.split("/", 3)[3])
        assert page is not None and b"v-edit" not in page[1] and b"editing.js" not in page[1]
        assert server.answer(server.url.split("/", 3)[3] + "editing.js") is None


def test_a_case_without_a_label_map_is_drawn_from_scratch(tiny: Tiny, tmp_path: Path) -> None:
    document = json.loads(tiny.truth.read_text())
    case = document["training"].pop()
    document["test"] = [{"id": "case_1", "image": case["image"]}]
    tiny.truth.write_text(json.dumps(document))
    with served(tiny, tmp_path / "back", of_manifest=True) as server:
        about = json.loads(server.answer(server.url.split("/", 3)[3] + "case/0")[1])
        assert about["edit"]["begins"] is None
        assert [label["value"] for label in about["edit"]["labels"]] == [LEFT, RIGHT]
        voxels = np.zeros(stored(tiny.truth.parent / "image.nii.gz").shape, np.uint8)
        voxels[1, 2, 3] = LEFT
        assert json.loads(send(server, "case/0/correction", as_sent(voxels))[1])["changed_voxels"] == 1
    taken = import_corrections(tiny.truth, tmp_path / "back", selection="random")
    assert taken.manifest.training[0].history[0].start is None and not taken.manifest.training[0].only_trains


def test_overlapping_regions_and_sheared_grids_cannot_be_edited(tiny: Tiny, tmp_path: Path) -> None:
    masks = np.stack([tiny.labels == LEFT, tiny.labels > 0], axis=3).astype(np.uint8)
    save(tiny.out / "case_1/segmentation.nii.gz", masks, "RAS", nib.load(tiny.truth.parent / "image.nii.gz").affine)
    nib.save(nib.Nifti1Image(tiny.image, ras_affine()), tiny.truth.parent / "image.nii.gz")
    nib.save(nib.Nifti1Image(masks, ras_affine()), tiny.out / "case_1/segmentation.nii.gz")
    with served(tiny, tmp_path / "back") as server:
        about = json.loads(server.answer(server.url.split("/", 3)[3] + "case/0")[1])
        assert about["edit"] == {"why": "regions that overlap cannot be edited here"}
        assert send(server, "case/0/correction", bytes(masks[..., 0].size))[0] == 400
    assert not (tmp_path / "back/case_1.nii.gz").exists()


def test_corrections_have_a_folder_and_a_name(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="do not go into a result folder"):
        Editor(tiny.out, "reader-2")
    with pytest.raises(UsageError, match="who made the corrections"):
        Editor(tmp_path / "back", None)
    out = str(tiny.out)
    assert run(["view", out, "--edit", str(tmp_path / "back")]) == USAGE
    assert "--annotator reader-2" in capsys.readouterr().err
    assert run(["view", out, "--annotator", "reader-2"]) == USAGE
    page = str(tmp_path / "page.html")
    assert run(["view", out, "--edit", str(tmp_path / "back"), "--annotator", "reader-2", "--page", page]) == USAGE


@pytest.mark.parametrize("path", ["predictions", "predictions/case_1", "manifest"])
def test_what_is_printed_takes_the_corrections(
    tiny: Tiny, tmp_path: Path, path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    back = tmp_path / "who draws"

    def draw(self: ViewServer) -> None:
        start = nib.load(tiny.truth.parent / "label.nii.gz")
        voxels = stored(tiny.truth.parent / "label.nii.gz").astype(np.uint8)
        voxels[0, 0, :3] = RIGHT
        nib.save(nib.Nifti1Image(voxels, start.affine), back / "case_1.nii.gz")
        line = {"id": "case_1", "annotator": "reader-2", "sha256": sha256_of(back / "case_1.nii.gz")}
        (back / "corrections.jsonl").write_text(json.dumps(line) + "\n")

    monkeypatch.setattr(ViewServer, "serve", draw)
    source = tiny.truth if path == "manifest" else tiny.out / path.removeprefix("predictions").strip("/")
    assert run(["view", str(source), "--edit", str(back), "--annotator", "reader-2"]) == 0
    printed = capsys.readouterr().out
    (words,) = [line.split(": ", 1)[1] for line in printed.splitlines() if line.startswith("corrections go to")]
    taken = [word.replace("MANIFEST", str(tiny.truth)) for word in shlex.split(words)]
    assert taken[0] == "segpipe" and run(taken[1:]) == 0
    assert "corrected: case_1" in capsys.readouterr().out


def test_a_manifest_is_edited_beside_its_data(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ViewServer, "serve", lambda self: None)
    (tmp_path / "lists").mkdir()
    moved = shutil.move(tiny.truth, tmp_path / "lists/cases.json")
    words = ["--edit", str(tmp_path / "back"), "--annotator", "reader-2"]
    data = tiny.truth.parent
    assert run(["view", str(moved), "--data", str(data), *words]) == USAGE
    assert f"copy it into {data}" in capsys.readouterr().err
    shutil.copy(moved, data)  # as it says
    assert run(["view", str(data / "cases.json"), *words]) == 0
