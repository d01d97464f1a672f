"""What is published names nobody: a chain with marker names, and every kind of place that could name somebody."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from small_bundle import change_json, small_bundle
from tiny_ensemble import write_folds, write_out_of_fold
from tiny_run import record_as_trained

from segpipe.bundle.disclosure import find_disclosures
from segpipe.bundle.exporting.write import export
from segpipe.bundle.pack import pack_bundle
from segpipe.bundle.vet.documents import write_sums
from segpipe.cli.app import run as segpipe
from segpipe.common.files import write_json
from segpipe.data.manifest import load_manifest
from segpipe.errors import RefusedError

SHIPPED = Path(__file__).parents[2] / "bundles/hippocampus_mri"
MARKERS = ("Klinik_Quendel", "Zwetschge", "Mirabelle", "geheimhaus")


def contents(path: Path) -> Iterator[bytes]:
    """The bytes of a file, and those of what is packed in it."""
    content = path.read_bytes()
    yield content
    if path.suffix == ".gz":
        yield gzip.decompress(content)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name) for name in archive.namelist())
    elif path.suffix == ".png":
        at = 8
        while at < len(content):
            (length,) = struct.unpack(">I", content[at : at + 4])
            body = content[at + 8 : at + 8 + length]
            if content[at + 4 : at + 8] == b"zTXt":
                yield zlib.decompress(body.split(b"\0", 1)[1][1:])
            at += 12 + length


def named_in(root: Path) -> list[tuple[str, str]]:
    """Every file of a tree that has a marker in its name or bytes."""
    return [
        (path.relative_to(root).as_posix(), marker)
        for path in sorted(root.rglob("*"))
        if path.is_file()
        for marker in MARKERS
        if marker in path.as_posix()[len(str(root)) :] or any(marker.encode() in part for part in contents(path))
    ]


def write_named_data(root: Path, shape: tuple[int, int, int] = (20, 18, 16)) -> Path:
    """A data set whose folder, files and description name people and a place."""
    from segpipe.data.phantom import make_phantom

    place = root / "Klinik_Quendel"
    for number in range(4):
        stem = f"{'Zwetschge' if number % 2 else 'Mirabelle'}_{number}"
        for folder in ("imagesTr", "labelsTr"):
            (place / folder).mkdir(parents=True, exist_ok=True)
        make_phantom(number, shape=shape, spacing_mm=(3.0, 3.0, 3.5)).write(
            place / f"imagesTr/{stem}.nii.gz", place / f"labelsTr/{stem}.nii.gz"
        )
    entries = [
        {"image": f"./imagesTr/{path.name}", "label": f"./labelsTr/{path.name}"}
        for path in sorted((place / "imagesTr").iterdir())
    ]
    document = {
        "name": "geheimhaus",
        "description": "of the geheimhaus",
        "reference": "Dr. Zwetschge",
        "licence": "CC0",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "liver", "2": "kidney", "3": "lesion"},
        "training": entries,
        "test": [],
    }
    write_json(place / "dataset.json", document)
    return place


def test_a_pseudonymised_manifest_keeps_no_name_but_the_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = write_named_data(tmp_path)
    words = ["import", str(place), "--pseudonymise", "--patient-rule", r"regex:^(Zwetschge|Mirabelle)"]
    assert segpipe(words) == 0
    assert "left out: name, description, reference, as the source has it" in capsys.readouterr().err
    document = json.loads((place / "manifest.json").read_text())
    assert (document["name"], document["pseudonymised"], document["patient_rule"]) == ("dataset", True, "regex")
    for case in document["training"]:
        assert case["id"].startswith("case-") and case["patient_id"].startswith("patient-")
        for field in ("image", "label", "sha256"):
            del case[field]
    assert not any(marker in json.dumps(document) for marker in MARKERS)


@pytest.fixture
def named_run(run_folder: Path, tmp_path: Path) -> Path:
    """A run on such a manifest, of the tiny network."""
    place = write_named_data(tmp_path)
    assert segpipe(["import", str(place), "--pseudonymise", "--json"]) == 0
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    document = json.loads((place / "manifest.json").read_text())
    labels = json.loads((run / "manifest.json").read_text())["labels"]
    for index, case in enumerate(document["training"]):
        case["fold"] = index % 2
    write_json(run / "manifest.json", {**document, "labels": labels})
    config = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", {**config, "dataset_dir": "data", "bundle_root": "."})
    write_json(run / "places.json", {"dataset_dir": str(place)})
    record_as_trained(run)
    return run


def test_a_bundle_has_pseudonyms_and_hashes_alone(named_run: Path, tmp_path: Path) -> None:
    root = export(named_run, tmp_path / "bundle").root
    assert named_in(root) == []
    manifest = load_manifest(root / "configs/manifest.json")
    assert {path for case in manifest.training for path in case.paths} == {
        f"{kind}/{case.id}.nii.gz" for case in manifest.training for kind in ("images", "labels")
    }
    at_home = load_manifest(named_run / "manifest.json")
    for mine, published in zip(at_home.training, manifest.training, strict=True):
        assert list((mine.sha256 or {}).values()) == list((published.sha256 or {}).values())
    record = json.loads((root / "provenance.json").read_text())
    assert set(record["manifest"]["files_sha256"]) == {path for case in manifest.training for path in case.paths}
    pack_bundle(root, tmp_path / "bundle.zip", publish=True)
    assert named_in(tmp_path / "bundle") == []


def test_an_ensemble_has_pseudonyms_alone_as_well(named_run: Path, tmp_path: Path) -> None:
    folds = write_folds(named_run, tmp_path / "cv")
    for fold in folds.glob("fold_*"):  # as `segpipe train` leaves runs of such a manifest
        config = json.loads((fold / "config.json").read_text())
        write_json(fold / "config.json", {**config, "bundle_root": "."})
        record_as_trained(fold)
    write_out_of_fold(folds)
    root = export(folds, tmp_path / "bundle").root
    assert named_in(root) == [] and (root / "models/member_1.pt").is_file()
    pack_bundle(root, tmp_path / "bundle.zip", publish=True)


@pytest.mark.parametrize(
    "said", [{"description": "Scans of Klinik_Quendel."}, {"limits": ("not for mirabelle_0",)}, {"name": "Zwetschge_1"}]
)
def test_export_refuses_what_names_the_source_all_the_same(
    named_run: Path, tmp_path: Path, said: dict[str, Any]
) -> None:
    with pytest.raises(RefusedError, match="would name what its pseudonyms hide") as caught:
        export(named_run, tmp_path / "bundle", **said)
    assert not (tmp_path / "bundle").exists()
    assert all(finding["file"] and finding["place"] for finding in caught.value.findings)
    assert not any(marker in json.dumps(caught.value.findings) for marker in MARKERS)


@pytest.mark.slow
def test_the_whole_way_leaves_no_name_in_any_file(tmp_path: Path) -> None:
    """Import, plan, train, export and publish; only the manifest and the run's own copy of it know the files."""
    from tiny_data import train_arguments

    place, out = write_named_data(tmp_path), tmp_path / "out"
    manifest = out / "manifest.json"
    out.mkdir()
    assert segpipe(["import", str(place), "--pseudonymise", "-o", str(manifest)]) == 0
    assert segpipe(["split", str(manifest), "--folds", "2"]) == 0
    assert segpipe(["plan", str(manifest), "--data", str(place), "-o", str(out / "task.yaml")]) == 0
    words = train_arguments(manifest, out / "run", "--data", str(place), "--epochs", "1")
    assert segpipe([*words, "--set", "patch_size=[16,16,16]"]) == 0
    assert segpipe(["export", str(out / "run"), str(out / "bundle")]) == 0
    assert segpipe(["bundle", "pack", str(out / "bundle"), "--publish", "-o", str(out / "bundle.zip")]) == 0
    assert {file for file, _ in named_in(out)} == {"manifest.json", "run/manifest.json", "run/places.json"}
    assert (out / "run/places.json").stat().st_mode & 0o777 == 0o600
    assert segpipe(["train", "--resume", str(out / "run")]) == 0


def describe(text: str) -> Callable[[Path], None]:
    return lambda root: change_json(root / "configs/metadata.json", lambda document: document.update(task=text))


def card(text: str) -> Callable[[Path], None]:
    return lambda root: (root / "docs/README.md").write_text(f"# tiny\n\nA card: {text}.\n") and None


def golden(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        image = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
        change(image.header)
        nib.save(image, root / "docs/volume.nii.gz")

    return spoil


def extension(header: Any) -> None:
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))


def png(chunk: bytes, body: bytes) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        import zlib as packer

        def part(kind: bytes, content: bytes) -> bytes:
            return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", packer.crc32(kind + content))

        head = part(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
        pixels = part(b"IDAT", packer.compress(b"\0\0"))
        picture = b"\x89PNG\r\n\x1a\n" + head + part(chunk, body) + pixels + part(b"IEND", b"")
        (root / "docs/picture.png").write_bytes(picture)

    return spoil


def weights(root: Path) -> None:
    import torch

    state = torch.load(root / "models/model.pt", weights_only=True)
    torch.save({**state, "/home/jane/run": torch.zeros(1)}, root / "models/model.pt")


def manifest(**case: Any) -> Callable[[Path], None]:
    whole = {"id": "case-0123456789ab", "image": "images/case-0123456789ab.nii.gz", **case}
    return lambda root: write_json(root / "configs/manifest.json", {"training": [whole]})


@pytest.mark.parametrize(
    ("spoil", "file", "reason"),
    [
        (describe("trained in /home/jane/scans"), "configs/metadata.json", "path of a machine"),
        (describe(r"trained in C:\Users\jane"), "configs/metadata.json", "path of a machine"),
        (describe("trained in ~jane/scans"), "configs/metadata.json", "path of a machine"),
        (describe(r"on \\pacs01\share"), "configs/metadata.json", "path of a machine"),
        (describe("file:///data/jane"), "configs/metadata.json", "path of a machine"),
        (describe("scan 1.3.12.2.1107.5.2.19.45152.30000019"), "configs/metadata.json", "DICOM UID"),
        (describe("scanned 2019-03-07"), "configs/metadata.json", "a date"),
        (describe("scan_20190307"), "configs/metadata.json", "a date"),
        (describe("Doe^Jane"), "configs/metadata.json", "as DICOM writes it"),
        (card("born 07.03.1951"), "docs/README.md", "a date"),
        (card("born 7 March 1951"), "docs/README.md", "a date"),
        (card("ask jane.doe@klinik.example"), "docs/README.md", "e-mail"),
        (card("data in (/mnt/pacs/jane)"), "docs/README.md", "path of a machine"),
        (golden(lambda header: header.__setitem__("descrip", b"Jane Doe")), "docs/volume.nii.gz", "header"),
        (golden(lambda header: header.__setitem__("aux_file", b"jane.hdr")), "docs/volume.nii.gz", "header"),
        (golden(lambda header: header.__setitem__("db_name", b"Jane")), "docs/volume.nii.gz", "header"),
        (golden(extension), "docs/volume.nii.gz", "header"),
        (png(b"tEXt", b"Author\0Jane"), "docs/picture.png", "comment"),
        (png(b"zTXt", b"Comment\0\0" + zlib.compress(b"Jane Doe")), "docs/picture.png", "comment"),
        (png(b"iTXt", b"Title\0\0\0\0\0Jane"), "docs/picture.png", "comment"),
        (weights, "models/model.pt", "path of a machine"),
        (manifest(image="images/Jane.nii.gz"), "configs/manifest.json", "original name beside its pseudonym"),
        (manifest(label="labels/Jane.nii.gz"), "configs/manifest.json", "original name beside its pseudonym"),
        (manifest(patient_id="4711"), "configs/manifest.json", "patient's own number"),
        (lambda root: (root / "docs/20190307.txt").write_text("x"), "docs/20190307.txt", "a date"),
        (card("run by weissdorn"), "docs/README.md", "name of this machine"),
    ],
)
def test_what_could_name_somebody_is_found(
    tmp_path: Path, spoil: Callable[[Path], object], file: str, reason: str
) -> None:
    root = small_bundle(tmp_path / "bundle")
    assert find_disclosures(root, ("weissdorn",)) == []
    spoil(root)
    findings = find_disclosures(root, ("weissdorn",))
    assert [(finding.file, finding.text) for finding in findings] == [(file, "(not quoted)")] * len(findings)
    assert findings and all(finding.place for finding in findings) and reason in findings[0].reason


@pytest.mark.parametrize(
    "text",
    [
        "10.1038/s41467-022-30695-9 and https://doi.org/10.1038/s41592-020-01008-z",
        "https://github.com/Project-MONAI/x/releases/download/0.8.1/meta_schema_20240725.json",
        "1.2.840.10008.5.1.4.1.1.66.4 is a SOP class",
        "0.20190307 and 3.1.4.1.5, torch 2.13.0.dev20260101, left and/or right, Research (2026), x^2",
        "written to OUT/<name>_seg.nii.gz; $@bundle_root + '/models/model.pt'",
        "a" * 8 + "20190307" + "b" * 24,
    ],
)
def test_what_names_nobody_is_let_pass(tmp_path: Path, text: str) -> None:
    root = small_bundle(tmp_path / "bundle")
    describe(text)(root)
    card(text)(root)
    assert find_disclosures(root) == []


def test_the_authors_may_be_written_to(tmp_path: Path) -> None:
    root = small_bundle(tmp_path / "bundle")
    change_json(
        root / "configs/metadata.json", lambda document: document.update(authors="Jane Doe <jane@klinik.example>")
    )
    card("by Jane Doe <jane@klinik.example>, ask jane@klinik.example")(root)
    assert find_disclosures(root) == []


def test_publishing_is_refused_with_file_and_place_and_never_the_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = small_bundle(tmp_path / "bundle")
    describe("trained in /home/jane/scans")(root)
    write_sums(root)
    words = ["bundle", "pack", str(root), "-o", str(tmp_path / "out.zip")]
    assert segpipe([*words, "--publish"]) == 5
    said = capsys.readouterr().err
    assert "configs/metadata.json" in said and "task" in said and "jane" not in said
    assert not (tmp_path / "out.zip").exists()
    assert segpipe(words) == 0


def test_the_shipped_bundle_can_be_published(tmp_path: Path) -> None:
    assert find_disclosures(SHIPPED, ("weissdorn",)) == []
