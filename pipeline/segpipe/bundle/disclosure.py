"""What of a bundle could name a patient or a place, for whoever is about to publish it.

Every file is read as data: texts and JSON whole, of pictures, volumes, arrays and weights the texts that they carry
beside their numbers. What pixels show, and a name that looks like any other word, is found by nobody but a person.
"""

from __future__ import annotations

import getpass
import gzip
import json
import pickletools
import re
import socket
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from segpipe.bundle.vet import Finding

MANIFEST = "configs/manifest.json"
TEXTS = ("", ".md", ".txt", ".conf", ".cfg", ".toml", ".csv", ".py", ".yaml", ".yml")
MOST_BYTES = 64 * 2**20  # of one part of a file that is looked at
MOST_FINDINGS = 100
NOT_QUOTED = "(not quoted)"
PSEUDONYM = re.compile(r"(?:case|dcm)-[0-9a-f]{12}")
PATIENT = re.compile(r"p\d+|patient-[0-9a-f]{12}")
GENERIC = re.compile(  # of any machine or data set
    "root|user|admin|ubuntu|debian|docker|runner|localhost|images?(?:tr|ts)?|labels?(?:tr|ts)?|masks?|segmentations?|"
    "scans?|volumes?|data|dataset|nifti|dicom|train|training|test|validation|flair|truth",
    re.IGNORECASE,
)

HOMES = r"(?<![\w.])/(?:home|Users|root|mnt|media|srv|scratch|export|nfs|data\d*)/[\w.-]|[A-Za-z]:\\(?:Users|Daten)"
PATH = re.compile(
    r"(?<![\w.:/@<>)\]}*-])(?<!\+ ['\"])(?:~[\w.-]*/[\w.-]|/[\w.-]+/[\w.-]|[A-Za-z]:[\\/][\w.-]|\\\\[\w.-]+\\)|file://"
)
UID = re.compile(r"(?<![\d.])(?!1\.2\.840\.10008\.)[0-2](?:\.(?:0|[1-9]\d*)){5,}(?!\d)")
YEAR, MONTH, DAY = r"(?:19|20)\d\d", r"(?:0[1-9]|1[0-2])", r"(?:0[1-9]|[12]\d|3[01])"
MONTHS = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
DATE = re.compile(
    rf"(?<![\d.])(?<!dev){YEAR}{MONTH}{DAY}(?!\d)|(?<!\d){YEAR}-{MONTH}-{DAY}(?!\d)"
    rf"|(?<![\d.])\d{{1,2}}[./]\d{{1,2}}[./]{YEAR}(?!\d)|\b\d{{1,2}}\.? {MONTHS}[a-z]* {YEAR}\b"
)
EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
PERSON = re.compile(r"(?<![\w^])[^\W\d_]{2,}\^[^\W\d_]{2,}")
PATTERNS = {
    "a path of a machine": PATH,
    "a DICOM UID": UID,
    "a date": DATE,
    "an e-mail address that is not the authors'": EMAIL,
    "a person's name as DICOM writes it": PERSON,
}
IN_BYTES = {"a path of a machine": re.compile(HOMES), "a DICOM UID": re.compile(UID.pattern.replace("{5,}", "{8,}"))}
HASH, URL = re.compile(r"\b[0-9a-f]{16,}\b"), re.compile(r"\b(?!file:)[a-z][a-z0-9+.-]*://[^\s'\")>]+")
PRINTABLE = re.compile(rb"[\x20-\x7e\xc0-\xf4\x80-\xbf]{6,}")
FREE_FIELDS = ("descrip", "aux_file", "db_name", "intent_name")


class Text(NamedTuple):
    """A text of a file: where it stands, what it is, and what speaks against it whatever it is."""

    place: str
    text: str
    reason: str = ""
    is_binary: bool = False


COMMENT, HEADER = "a comment, which may name somebody", "a text in the header, which may name somebody"


def machine_words() -> tuple[str, ...]:
    """Return the names of this machine and of its user, where they are more than any machine's."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = ""
    return tuple(word for word in (user, socket.gethostname()) if is_telling(word))


def is_telling(word: str) -> bool:
    """Return whether a word can name somebody: it is not one that any data set or machine has."""
    return len(word) >= 4 and not GENERIC.fullmatch(word) and not word.isdigit()


def find_disclosures(root: Path, words: Collection[str] = ()) -> list[Finding]:
    """Return each place of a bundle that could name a patient or a place; none of them is quoted.

    Args:
        root: its folder.
        words: names that must not stand in it, whole and in any case.
    """
    judge = _judge(words, _authors(root))
    findings: list[Finding] = list(_manifest_names(root))
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = path.relative_to(root).as_posix()
        texts = [Text("the name of the file", name), *_texts_of(path, name)]
        known = {(text.place, reason): None for text in texts for reason in judge(text, name)}
        findings += [Finding(name, place, NOT_QUOTED, reason) for place, reason in known]
        if len(findings) > MOST_FINDINGS:
            break
    return findings


def _authors(root: Path) -> tuple[str, ...]:
    """Return what the authors say of themselves, which may be a name and an address."""
    metadata = _json(root / "configs/metadata.json")
    stated = [metadata.get(field) for field in ("authors", "copyright")] if isinstance(metadata, dict) else []
    return tuple(text for text in stated if isinstance(text, str) and text and text != "not stated")


def _judge(words: Collection[str], authors: Collection[str]) -> Callable[[Text, str], Iterator[str]]:
    """Return what gives the reasons against a text of a file."""
    telling = sorted({re.escape(word) for word in words if is_telling(word)}, key=len, reverse=True)
    named = re.compile(rf"(?<![^\W_])(?:{'|'.join(telling)})(?![^\W_])", re.IGNORECASE) if telling else None
    addresses = {address for text in authors for address in EMAIL.findall(text)}

    def judge(part: Text, file: str) -> Iterator[str]:
        text = part.text
        if part.reason:
            yield part.reason
        for own in authors:
            text = text.replace(own, "")
        if named is not None and named.search(text):
            yield "a name of this machine, its user, or of the data's own files"
        text = HASH.sub("", URL.sub("", text))
        for reason, pattern in (IN_BYTES if part.is_binary else PATTERNS).items():
            if file.startswith("LICENSE") and pattern in (DATE, EMAIL):
                continue
            found = pattern.findall(text)
            if pattern is EMAIL:
                found = [address for address in found if address not in addresses]
            if found:
                yield reason

    return judge


def _texts_of(path: Path, name: str) -> Iterator[Text]:
    """Yield the texts of a file by what it is."""
    suffix = ".nii" if name.lower().endswith((".nii", ".nii.gz")) else path.suffix.lower()
    if suffix == ".json":
        document = _json(path)
        yield from _strings(document) if document is not None else _lines(path)
    elif suffix in TEXTS:
        yield from _lines(path)
    elif suffix == ".png":
        yield from _png_texts(path)
    elif suffix == ".nii":
        yield from _nifti_texts(path)
    elif zipfile.is_zipfile(path):  # weights of torch.save, arrays
        yield from _zip_texts(path)
    else:
        yield from _runs(path.read_bytes()[:MOST_BYTES], "bytes")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _strings(value: Any, place: str = "") -> Iterator[Text]:
    """Yield each key and each text of a document; numbers name nobody, nor do the times of a training."""
    if isinstance(value, str):
        yield Text(place, value)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield Text(f"{place}: a key", key)
            if key != "began":
                yield from _strings(part, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _strings(part, f"{place}[{index}]")


def _lines(path: Path) -> Iterator[Text]:
    for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), 1):
        yield Text(f"line {number}", line)


def _runs(content: bytes, place: str) -> Iterator[Text]:
    """Yield what of bytes a person could read, as one text."""
    yield Text(place, b"\n".join(PRINTABLE.findall(content)).decode(errors="replace"), is_binary=True)


def _png_texts(path: Path) -> Iterator[Text]:
    """Yield the texts of a picture: chunks tEXt, zTXt, iTXt and eXIf; a comment is taken for a name."""
    content, at = path.read_bytes(), 8
    while at + 8 <= len(content):
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        body = content[at + 8 : at + 8 + length]
        at += 12 + length
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"eXIf"):
            continue
        key, _, rest = body.partition(b"\0")
        if kind == b"zTXt" or (kind == b"iTXt" and rest[:1] == b"\1"):
            packed = rest[1:] if kind == b"zTXt" else rest.split(b"\0", 3)[-1]
            try:
                rest = zlib.decompressobj().decompress(packed, MOST_BYTES)
            except zlib.error:
                rest = b"?"
        text = rest.decode(errors="replace").strip("\0 ")
        is_plain = key == b"Software" or not (text or kind == b"eXIf")
        yield Text(f"text {key.decode(errors='replace')}", text, "" if is_plain else COMMENT)
    yield from _runs(content[at:], "bytes after the picture")


def _nifti_texts(path: Path) -> Iterator[Text]:
    """Yield the texts of a volume's header and of its extensions; any of them is taken for a name."""
    import numpy as np
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as stream:
            head = stream.read(540)
            is_second = int.from_bytes(head[:4], "little") == 540 or int.from_bytes(head[:4], "big") == 540
            header = (Nifti2Header if is_second else Nifti1Header)(head[: 540 if is_second else 348], check=False)
            rest = stream.read(max(0, min(int(header["vox_offset"]), MOST_BYTES) - len(head)))
    except (OSError, EOFError, ValueError, zlib.error):
        yield Text("header", "", "it cannot be read")
        return
    for field in FREE_FIELDS:
        text = bytes(np.asarray(header[field]).tobytes()).strip(b"\0 ").decode(errors="replace")
        if text and not text.startswith("repaired: "):
            yield Text(f"header field {field}", text, HEADER)
    extension = head[540 if is_second else 348 :] + rest
    if extension[:1] not in (b"", b"\0"):
        yield Text("header extension", "", HEADER)


def _zip_texts(path: Path) -> Iterator[Text]:
    """Yield names, comments and texts of pickles in a zip file; of all else what a person could read."""
    with zipfile.ZipFile(path) as archive:
        comment = archive.comment.decode(errors="replace")
        yield Text("comment", comment, COMMENT if comment else "")
        for member in archive.infolist():
            yield Text("the name of a member", member.filename)
            content = archive.open(member).read(MOST_BYTES)
            if PurePosixPath(member.filename).suffix == ".pkl":
                yield from (Text(member.filename, text) for text in _pickled(content))
            else:
                yield from _runs(content, f"bytes of {member.filename}")


def _pickled(content: bytes) -> Iterator[str]:
    """Yield the texts of a pickle, of which nothing is executed."""
    try:
        yield from (
            str(argument) for _, argument, _ in pickletools.genops(content) if isinstance(argument, (str, bytes))
        )
    except Exception:  # noqa: BLE001 - a damaged one; it was vetted where it counts
        yield from (part.text for part in _runs(content, ""))


def _manifest_names(root: Path) -> Iterator[Finding]:
    """Yield where a manifest says who or what a pseudonym stands for."""
    document = _json(root / MANIFEST)
    sections = [document.get(name) for name in ("training", "test")] if isinstance(document, dict) else []
    cases = [case for section in sections if isinstance(section, list) for case in section if isinstance(case, dict)]
    for index, case in enumerate(cases):
        patient, case_id = case.get("patient_id"), str(case.get("id"))
        if patient is not None and not PATIENT.fullmatch(str(patient)):
            yield Finding(MANIFEST, f"case {index + 1}: patient_id", NOT_QUOTED, "a patient's own number or name")
        images = case.get("image")
        paths = [*(images if isinstance(images, list) else [images]), case.get("label")]
        hidden = PSEUDONYM.fullmatch(case_id) or document.get("pseudonymised")
        if hidden and any(path and case_id not in PurePosixPath(str(path)).name for path in paths):
            yield Finding(
                MANIFEST, f"case {index + 1}: image or label", NOT_QUOTED, "an original name beside its pseudonym"
            )
