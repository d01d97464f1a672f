"""From a run folder to a MONAI bundle: `export`, which writes all files of the folder in their order."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata as packages
from pathlib import Path
from typing import Any

from segpipe.bundle.exporting.bundle_configs import (
    Rules,
    check_rules,
    evaluate_config,
    fast_config,
    file_endings,
    inference_config,
    network_definition,
    train_config,
)
from segpipe.bundle.exporting.bundle_metadata import NOT_STATED, Labelling, bundle_metadata, named_targets
from segpipe.bundle.exporting.card import model_card
from segpipe.bundle.exporting.card_figures import draw_pictures
from segpipe.bundle.exporting.estimate import estimate_record, read_estimate
from segpipe.bundle.exporting.first_stage import Stage, add_stage, read_stage, stage_record
from segpipe.bundle.exporting.members import Members, Weights, members_metadata, read_members
from segpipe.bundle.exporting.passed_on import anonymous, names_at_home, require_nameless
from segpipe.bundle.exporting.proven_precision import read_proof
from segpipe.bundle.exporting.quality_model import quality_in_short, read_quality
from segpipe.bundle.exporting.run_record import MANIFEST, PROVENANCE, TRAIN, Run, provenance
from segpipe.bundle.exporting.tied_evaluation import INFERENCE, Evaluation, read_evaluation, tied
from segpipe.bundle.golden import write_golden, write_golden_quality
from segpipe.bundle.open import open_bundle
from segpipe.bundle.opened import Bundle
from segpipe.bundle.vet import METADATA, write_sums
from segpipe.common.api_calls import checked_call
from segpipe.common.files import cannot_write, json_text, read_json, write_bytes, write_json, write_text
from segpipe.common.partial import Partial
from segpipe.data import Manifest
from segpipe.errors import UsageError
from segpipe.inference import read_rules
from segpipe.quality import QUALITY

LOGGING = """[loggers]
keys=root,dicom

[handlers]
keys=console

[formatters]
keys=plain

[logger_root]
level=INFO
handlers=console

# else MONAI says on every start that a DICOM decoder for GPUs is not there
[logger_dicom]
level=ERROR
qualname=monai.data.nvimgcodec_pydicom_plugin
handlers=

[handler_console]
class=StreamHandler
level=INFO
formatter=plain
args=(sys.stdout,)

[formatter_plain]
format=%(asctime)s %(levelname)s %(message)s
"""


@checked_call
def export(
    run: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    version: str = "0.1.0",
    licence: str = "Apache-2.0",
    authors: str = NOT_STATED,
    description: str = "",
    limits: Sequence[str] = (),
    codes: str | Path | Mapping[str, Any] | None = None,
    evaluation: str | Path | None = None,
    postprocessing: str | Path | None = None,
    estimated_by: str | Path | None = None,
    precision: str | Path | None = None,
    first_stage: str | Path | None = None,
    golden: Sequence[str | Path] = (),
    unfinished: bool = False,
    overwrite: bool = False,
) -> Bundle:
    """Write the weights that a run kept as a bundle folder, whole or not at all, and open it.

    Stock MONAI runs the bundle without this package.

    Args:
        run: run folder with ``config.json``, ``run.json``, ``manifest.json`` and ``best.pt`` or ``final.pt``; or that
            of a cross-validation, whose finished folds become one ensemble.
        out: the bundle's folder.
        name: of the bundle; default: that of its folder.
        version: of the bundle, such as ``1.2.0``.
        licence: of the weights: an SPDX name, or a file with its text.
        authors: who made the model.
        description: what the model is, in a sentence or two; default: its network, labels and channels.
        limits: sentences on what the model is not for.
        codes: label name to its codes and colour in DICOM, or a JSON file of them; default: known by name.
        evaluation: folder of `segpipe evaluate` with ``metrics.json``, for the results in metadata and card; of what an
            export of this run without it predicted.
        postprocessing: rules that `segpipe evaluate --try-postprocessing` chose.
        estimated_by: cross-validation of the same training, whose out-of-fold figures stand for a model of all cases;
            the card says whose they are. An ensemble takes those of its own folds.
        precision: file of `segpipe bundle precision`, measured with an export of this run without it, which lets
            ``predict`` compute in bfloat16 where that is fast.
        first_stage: cross-validation whose label maps are the run's last channels; the bundle then runs both, and takes
            scans alone. None leaves these channels to whoever has the masks.
        golden: image of the golden case that anyone may be given, once a channel file; default: one is generated.
        unfinished: export a run whose training did not finish; metadata and card say so.
        overwrite: replace a bundle that is already there.

    Raises:
        UsageError: not a run folder, ``out`` is taken, the run has no place in a stock config, or it needs no estimate.
        DataError: the weights cannot be read or do not fit the network.
        RefusedError: the run did not finish, its config or manifest is not the one that it was trained with, folds were
            not trained alike, the first stage is another one than the run's, the evaluation is not of label maps that
            this bundle made of cases that its training left out, or the precision is of another model or changes label
            maps.

    Example:
        >>> import segpipe
        >>> bundle = segpipe.export("run", "liver_ct", version="1.0.0", licence="CC-BY-4.0")
        >>> bundle.name, bundle.version, bundle.intact
        ('liver_ct', '1.0.0', True)
    """
    run, out = Path(run), Path(out)
    meanings = read_json(codes, "file of codes") if isinstance(codes, (str, Path)) else codes or {}
    is_file = Path(licence).is_file()
    labelling = Labelling(
        name or out.resolve().name,
        version,
        "see LICENSE" if is_file else licence,
        authors,
        description,
        tuple(limits),
        meanings,
    )
    members = read_members(run, unfinished)
    whose = None if estimated_by is None else Path(estimated_by)
    estimate = read_estimate(members, run, whose)
    rules = {} if postprocessing is None else read_rules(postprocessing)
    stage = read_stage(None if first_stage is None else Path(first_stage), members.runs[0].manifest)
    draft = _Draft.of(members, rules, None if evaluation is None else Path(evaluation), stage)
    metadata = draft.metadata(labelling)
    if estimate is not None:
        metadata["estimate"] = estimate
    if precision is not None:
        metadata["precision"] = read_proof(precision, draft.hashes())
    quality = read_quality(run, [each.sha256 for each in draft.weights])
    if quality is not None:
        metadata["quality"] = quality_in_short(quality)
    text = _licence_text(licence)
    with _whole_folder(out, overwrite) as folder:
        _write_configs(folder, draft, metadata)
        if stage is not None:
            named = partial(export, name=f"{labelling.name}_first_stage", version=version)
            add_stage(stage, folder, metadata, partial(named, licence=licence, authors=authors))
        if quality is not None:
            write_text(folder / QUALITY, json.dumps(quality, separators=(",", ":")) + "\n")  # mostly numbers
        metadata["golden"] = write_golden(
            folder, metadata, draft.labels, draft.endings, [Path(image) for image in golden]
        )
        record = draft.provenance(folder, None if estimate is None else estimate_record(whose or run, estimate))
        if stage is not None:
            record["first_stage"] = stage_record(folder)
        write_json(folder / PROVENANCE, record)
        write_text(folder / "docs" / "README.md", model_card(metadata, record, draft.draw(folder)))
        if draft.run.manifest.licence:
            write_text(folder / "docs" / "data_license.txt", _data_licence(draft.run.manifest))
        write_text(folder / "LICENSE", text)
        write_json(folder / METADATA, metadata)
        write_golden_quality(folder)
        write_sums(folder)
        original = members.runs[0].manifest
        if original.pseudonymised:
            require_nameless(folder, names_at_home(original, draft.run))
    return open_bundle(out)


@dataclass(frozen=True)
class _Draft:
    """What becomes a bundle, before anything of it is written.

    Attributes:
        members: its networks.
        run: what was trained, of all members together, with the manifest as it is passed on.
        rules: post-processing by label value.
        network: class and arguments of a network, as stock MONAI has it.
        weights: of each network.
        texts: content of the inference config and of the manifest, by file.
        measured: figures that are of this very bundle.
        stage: the first of two stages; None where there is one.
    """

    members: Members
    run: Run
    rules: Rules
    network: Mapping[str, Any]
    weights: tuple[Weights, ...]
    texts: Mapping[str, str]
    measured: Evaluation | None = None
    stage: Stage | None = None

    @classmethod
    def of(cls, members: Members, rules: Rules, evaluation: Path | None, stage: Stage | None) -> _Draft:
        """Read the weights, and tie the figures of an evaluation to them."""
        run = members.together()
        run = replace(run, manifest=anonymous(run.manifest))
        run = run if stage is None else stage.seen_by(run)
        check_rules(rules, run.config)
        measured = None if evaluation is None else read_evaluation(evaluation)
        network = network_definition(run.config)
        weights = members.read(network)
        texts = {
            INFERENCE: json_text(
                inference_config(run.config, rules, _files(run.manifest), len(members), _masks(run.manifest, stage))
            ),
            MANIFEST: json_text(run.manifest.dump()),
        }
        if measured is not None:
            content = {each.file: each.content for each in weights} | (stage.contents if stage else {})
            measured = tied(measured, run, content, texts[INFERENCE], texts[MANIFEST])
        return cls(members, run, rules, network, weights, texts, measured, stage)

    @property
    def endings(self) -> list[str]:
        """Return how the image files of a case end."""
        return file_endings(_files(self.run.manifest), _masks(self.run.manifest, self.stage))

    @property
    def labels(self) -> dict[int, str]:
        """Return the name of each value of a label map, or the number of each region."""
        return named_targets(self.run.manifest)

    def hashes(self) -> dict[str, str]:
        """Return the hashes of what decides on a label map, by file."""
        contents = {INFERENCE: self.texts[INFERENCE].encode(), **{each.file: each.content for each in self.weights}}
        contents |= self.stage.contents if self.stage else {}
        return {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}

    def metadata(self, labelling: Labelling) -> dict[str, Any]:
        """Return ``metadata.json`` but for what only the written bundle tells."""
        results = None if self.measured is None else self.measured.results
        section = _section(self.run.manifest)
        known = bundle_metadata(self.run, labelling, self.network, self.rules, results, section, len(self.members))
        return {**known, **members_metadata(self.weights)}

    def provenance(self, folder: Path, estimate: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return ``provenance.json`` of the bundle whose configs and weights are written."""
        tie = None if self.measured is None else self.measured.record()
        members = self.members.runs if len(self.members) > 1 else ()
        return provenance(self.run, {each.file: each.state for each in self.weights}, folder, tie, members, estimate)

    def draw(self, folder: Path) -> list[str]:
        """Draw the pictures of the card, and return their names."""
        dice = {} if self.measured is None else self.measured.dice
        manifest = self.run.manifest
        return draw_pictures(folder, manifest.targets, dice, {manifest.name: self.run.history})


def _files(manifest: Manifest) -> int:
    return max((len(case.images) for case in manifest.cases()), default=1)


def _masks(manifest: Manifest, stage: Stage | None) -> int:
    return 0 if stage is None or manifest.first_stage is None else len(manifest.first_stage.labels)


def _write_configs(folder: Path, draft: _Draft, metadata: dict[str, Any]) -> None:
    """Write configs, manifest and weights, and note in the metadata what the configs need."""
    configs, config, members = folder / "configs", draft.run.config, len(draft.members)
    fast = fast_config(config, draft.rules, members)
    if fast is not None:
        write_json(configs / "inference_fast.json", fast)
        needed = metadata["config_requirements"]
        needed["inference_fast.json"] = needed["train.json"]
    section = metadata["evaluate_section"]
    write_json(configs / "evaluate.json", evaluate_config(config, draft.rules, section, members))
    write_json(folder / TRAIN, train_config(config))
    write_text(configs / "logging.conf", LOGGING)
    for name, content in draft.texts.items():
        write_text(folder / name, content)
    for each in draft.weights:
        write_bytes(folder / each.file, each.content)


def _licence_text(licence: str) -> str:
    """Return the text of a licence: a file's content, our own Apache-2.0 text, or the SPDX name alone."""
    if Path(licence).is_file():
        return Path(licence).read_text(encoding="utf-8")
    text = None
    if licence == "Apache-2.0":
        beside = Path(__file__).resolve().parents[4] / "LICENSE"
        if beside.is_file():
            return beside.read_text(encoding="utf-8")
        with contextlib.suppress(packages.PackageNotFoundError):
            text = packages.distribution("segpipe").read_text("licenses/LICENSE")
    return text or f"SPDX-License-Identifier: {licence}\n"


def _section(manifest: Manifest) -> str:
    """Return the section that evaluate.json measures: test cases where all are labelled, else the training cases."""
    return "test" if manifest.test and all(case.label for case in manifest.test) else "training"


def _data_licence(manifest: Manifest) -> str:
    lines = [f"Trained on: {manifest.name}", f"Licence of the data: {manifest.licence}"]
    lines += [f"Source: {manifest.source}"] if manifest.source else []
    lines += [f"Reference: {manifest.reference}"] if manifest.reference else []
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def _whole_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary neighbour of ``out`` that takes its place when the block ends well; else nothing changes."""
    out = out.resolve()  # so that "." has a name and neighbours
    taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    is_bundle = (out / "configs" / "metadata.json").is_file()
    if taken and not (overwrite and is_bundle):
        raise UsageError(
            "the place for the bundle is taken",
            path=out,
            found="a bundle" if is_bundle else "something else",
            hint="replace it with --overwrite" if is_bundle else "choose another place",
        )
    try:
        with Partial(out.parent) as partial:
            (partial.folder / out.name).mkdir()
            yield partial.folder / out.name
            partial.publish(out.name, out)
    except OSError as error:
        raise cannot_write(out, error) from error
