"""segpipe export: a MONAI bundle from a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segpipe.cli.shared_options import AsJson, Mlflow


def command(
    run: Annotated[
        Path,
        typer.Argument(
            help="Run folder that `segpipe train` wrote; of a cross-validation, an ensemble of its folds.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the bundle, to be made.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="Name of the bundle; default: that of its folder.")] = None,
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "0.1.0",
    evaluation: Annotated[
        Path | None,
        typer.Option(help="Folder of `segpipe evaluate` on what this bundle predicted: figures for the card."),
    ] = None,
    postprocessing: Annotated[
        Path | None, typer.Option(help="Rules that `segpipe evaluate --try-postprocessing` wrote.")
    ] = None,
    estimated_by: Annotated[
        Path | None,
        typer.Option(
            help="Folder of `segpipe train --folds`, whose out-of-fold figures stand for a model of all cases."
        ),
    ] = None,
    precision: Annotated[
        Path | None,
        typer.Option(help="Proof that `segpipe bundle precision` wrote: predict may then compute in bfloat16."),
    ] = None,
    first_stage: Annotated[
        Path | None,
        typer.Option(help="Cross-validation whose label maps are the run's last channels: one bundle of both stages."),
    ] = None,
    licence: Annotated[
        str, typer.Option(help="Licence of the weights: an SPDX name, or a file with its text.")
    ] = "Apache-2.0",
    description: Annotated[
        str, typer.Option(help="What the model is, in a sentence or two, for a reader who knows nothing of it.")
    ] = "",
    authors: Annotated[str, typer.Option(help="Who made the model.")] = "not stated",
    limit: Annotated[
        list[str] | None, typer.Option(help="A sentence on what the model is not for; may be repeated.")
    ] = None,
    codes: Annotated[
        Path | None,
        typer.Option(help="JSON file: label name to its codes and colour in DICOM [default: known by name]."),
    ] = None,
    golden: Annotated[
        list[Path] | None,
        typer.Option(
            help="Image for the golden case that anyone may be given; once a channel file [default: one is generated]."
        ),
    ] = None,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Export a run whose training did not finish; the card says so.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    mlflow: Mlflow = None,
    json: AsJson = False,
) -> int:
    """Write the weights that a run kept as a MONAI bundle; of a cross-validation all its folds, as one ensemble.

    The bundle runs in stock MONAI without this package: label maps as uint8 on the grid of the input files. It has
    configs to train, evaluate and infer, complete metadata, a model card, and SHA256SUMS over every file. The
    folder appears whole or not at all.

    Figures get onto the card (--evaluation) where they are of label maps that this bundle predicted, of cases that its
    training left out: export, predict, evaluate, and export again with the figures. Others are refused.

    Example: segpipe export runs/one bundles/liver_ct --evaluation runs/one/test

    Example: segpipe export runs/full bundles/liver_ct --first-stage runs/coarse

    Then: python -m monai.bundle run --config_file bundles/liver_ct/configs/inference.json
    --bundle_root bundles/liver_ct --dataset_dir IMAGES --output_dir OUT
    """
    from segpipe.common.console import Console, quiet_libraries

    console = Console("export", as_json=json)
    quiet_libraries()
    from segpipe.bundle import export
    from segpipe.dicom import label_infos

    bundle = export(
        run,
        out,
        name=name,
        version=version,
        licence=licence,
        authors=authors,
        description=description,
        limits=limit or (),
        codes=codes,
        evaluation=evaluation,
        postprocessing=postprocessing,
        estimated_by=estimated_by,
        precision=precision,
        first_stage=first_stage,
        golden=golden or (),
        unfinished=unfinished,
        overwrite=overwrite,
    )
    if mlflow is not None:
        from segpipe.training import track_bundle

        console.note(f"kept in MLflow with run {track_bundle(out, run, mlflow)}")
    reason = bundle.metadata["golden"].get("reason")
    if reason:
        console.note(f"no golden case: {reason}. Give an image that anyone may be given with --golden")
    for note in label_infos(bundle.labels, bundle.metadata)[1]:
        console.note(f"{note} in DICOM. Say what it is with --codes")
    console.table(
        f"{bundle.name} {bundle.version}",
        ["what", "value"],
        [
            ("folder", out),
            ("labels", ", ".join(bundle.labels.values())),
            ("network", bundle.network_def and bundle.network_def["_target_"]),
            *([("members", len(bundle.members))] if bundle.members else []),
            ("weights", f"{sum(file.stat().st_size for file in bundle.weights.parent.glob('*.pt')) / 1e6:.1f} MB"),
            ("content", bundle.sha256),
        ],
    )
    stock, of = f"python -m monai.bundle run --config_file {out}/configs", f"--bundle_root {out} --dataset_dir IMAGES"
    if bundle.first_stage is not None:
        console.say(f"{stock}/first_stage.json {of} --output_dir MASKS")
        of += " --first_stage_dir MASKS"
    console.say(f"{stock}/inference.json {of} --output_dir OUT")
    console.document(
        folder=str(out),
        bundle={"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256},
        labels={str(value): label for value, label in bundle.labels.items()},
    )
    return 0
