"""Bundles: archives, and the inference config and the metadata of a bundle that is sound otherwise."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.font_manager  # noqa: F401 - makes a cache when it is first imported, as parts of MONAI do
import numpy as np
from guard import Room
from hypothesis import strategies as st
from mutation import Change, as_text, made, of_bytes, of_document, of_parts, several, spoiled
from target import Target, end

from bundle.raw_zip import Part, parts_of, raw_zip
from bundle.small_bundle import small_bundle


def bundles(scratch: Path) -> Iterator[Target]:
    """Archives, and the inference config and the metadata of a bundle that is sound otherwise."""
    root = small_bundle(scratch / "bundle", sums=False)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                archive.writestr(
                    zipfile.ZipInfo(path.relative_to(root).as_posix(), (2020, 1, 1, 0, 0, 0)), path.read_bytes()
                )
    parts = parts_of(content.getvalue())
    sound = raw_zip(parts)

    archives = st.one_of(_archives(parts), spoiled(_archives(parts)), spoiled(st.just(sound)))
    archives = archives.map(lambda data: (".zip", data))
    yield Target("archive", [(".zip", sound)], archives, _look_into)
    for name, file in (("config", "configs/inference.json"), ("metadata", "configs/metadata.json")):
        yield _document_of(name, file, root)


def _archives(parts: list[Part]) -> st.SearchStrategy[bytes]:
    """Archives whose members are changed, or called and described in another way by one of their headers."""
    odd = [b"../x", b"/x", b"a/../../x", b"\xff", b"a\0b", b"models/", b"CON", b"x" * 300, b"\xc3\xbc"]
    number = st.sampled_from([0, 1, 8, 9, 12, 14, 0x800, 0x8000, 0xFFFF, 2**31, 2**32 - 1])
    fields = st.sampled_from(["name", "flags", "method", "crc", "packed", "size", "extra", "offset"])
    said = st.dictionaries(fields, number, max_size=1)

    def as_said(values: dict[str, int]) -> dict[str, bytes | int]:
        fits = {"flags": 0xFFFF, "method": 0xFFFF}
        return {
            key: bytes(value % 30) if key in ("name", "extra") else value & fits.get(key, 2**32 - 1)
            for key, value in values.items()
        }

    def build(
        name: bytes | None, content: Change, method: int, mode: int, local: dict[str, int], central: dict[str, int]
    ) -> Change:
        return lambda part: Part(
            name or part.name, content(part.content), method, 0, mode, b"", as_said(local), as_said(central)
        )

    modes = st.sampled_from([0o100644, 0o100644, 0o100755, 0o120777, 0o104755, 0o40755, 0o10644, 0])
    methods = st.sampled_from([0, 0, 8, 8, 1, 14])
    names = st.one_of(st.none(), st.none(), st.sampled_from(odd))
    part = st.builds(build, names, several(of_bytes()), methods, modes, said, said)
    return made(parts, several(of_parts(part), 1)).map(raw_zip)


def _document_of(name: str, file: str, root: Path) -> Target:
    written = (root / file).read_bytes()
    values: list[Any] = [*EXPRESSIONS, *CLASSES] if name == "config" else ["1.6.1", ">=2", "CT", "MR", "$1", "@a"]
    keys = ["run", "initialize", "compile", "save_dir", "_requires_", "imports", "deterministic_transforms"]
    words = [
        b'"',
        b"{",
        b"}",
        b"[",
        b",",
        b":",
        b"NaN",
        b"1e999",
        b"\\ud800",
        b"&a ",
        b"*a",
        b"<<: ",
        b"!!set ",
        b"\n- ",
    ]
    edited = made(json.loads(written), several(of_document(values, keys), 1, 4)).map(as_text)
    as_json = st.one_of(edited, edited, spoiled(edited, words), spoiled(st.just(written), words))
    inputs = st.one_of(as_json.map(lambda data: (".json", data)), as_json.map(lambda data: (".yaml", data)))

    def use(path: Path, room: Room) -> None:
        bundle = path.parent / "bundle"
        shutil.copytree(root, bundle)
        (bundle / file).unlink()
        shutil.copyfile(path, (bundle / file).with_suffix(path.suffix if name == "config" else ".json"))
        _look_into(bundle, room)

    return Target(name, [(".json", written)], inputs, use)


def _look_into(path: Path, room: Room) -> None:
    """Show and open a bundle, and run one that passes, as far as the place for its results goes."""
    from segpipe.bundle import inspect_bundle, open_bundle, vet_opened
    from segpipe.bundle.verify import verify_bundle
    from segpipe.inference.transforms import bundle_parser

    for use in (inspect_bundle, verify_bundle):
        end(use, path)
    bundle = open_bundle(path)
    if bundle.unsupported:
        from segpipe.inference import ModelOptions

        vet_opened(bundle.recipe(ModelOptions.parse(device="cpu")).bundles, bundle.policy)
        parser = bundle_parser(str(bundle.root), bundle.inference, "cpu")
        for id in list(parser.config):
            try:
                parser.get_parsed_content(id)
            except Exception:  # noqa: BLE001 - of foreign code that passed: what it did counts
                continue
        return
    scan = np.arange(120, dtype=np.float32).reshape(6, 5, 4)
    bundle.segment(
        [scan] * max(1, len(bundle.channels)), affine_ras=np.eye(4), device="cpu", threads=1, runtime="torch"
    )


EXPRESSIONS = [
    "$__import__('os').system('touch ' + @output_dir)",
    "$open('/tmp/x', 'w')",
    "$().__class__.__base__.__subclasses__()",
    "$import os",
    "$from pathlib import Path",
    "$@network_def",
    "@network_def",
    "%network_def",
    "%/etc/passwd::a",
    "$[x for x in range(10**9)]",
    "$'a' * 10**12",
    "$lambda: 1",
    "$(lambda f: f(f))(lambda f: f(f))",
    "$@device and @files",
    "$torch.load('/etc/passwd')",
    "$torch.hub.load('a', 'b')",
    "$monai.utils.misc.run_cmd(['touch', '/tmp/x'])",
    "$f'{@device!r:>{9999999}}'",
    "$" + "(" * 300 + "1" + ")" * 300,
    "$" + "-" * 5000 + "1",
    "$@@@",
    "$@a::b::0#1",
    "@evaluator",
    "@x",
]
CLASSES = [
    "os.system",
    "subprocess.run",
    "builtins.eval",
    "torch.load",
    "torch.nn.Module.to",
    "monai.bundle.ConfigWorkflow",
    "monai.apps.download_url",
    "CheckpointSaver",
    "SaveImaged",
    "LogfileHandler",
    "TensorBoardStatsHandler",
    "UNet",
    "SlidingWindowInferer",
    "Compose",
    "Lambdad",
    "ScaleIntensityd",
    "KeepLargestConnectedComponentd",
    "SupervisedTrainer",
]
