"""Fingerprints of cases that nobody has, for the rules that go by them."""

from __future__ import annotations

from segpipe.data.fingerprint import CaseFingerprint, Channel, Fingerprint, Intensity, Summary

Shape = tuple[int, int, int]
Triple = tuple[float, float, float]


def made_fingerprint(
    *grids: tuple[Shape, Triple],
    box: Triple | None = None,
    median_ml: float | None = None,
    modality: str = "MRI",
    orientation: str = "RAS",
    nonzero: float = 1.0,
    foreground: Intensity | None = None,
) -> Fingerprint:
    """Return that of a case a grid, one channel each; the medians are those of the first."""
    overall = Intensity(mean=0, std=1, percentiles=(-2, -1, 0, 1, 2))
    channel = Channel(dtype="int16", nonzero_fraction=nonzero, overall=overall, foreground=foreground)
    cases = [
        CaseFingerprint(
            id=f"case{index}",
            shape=shape,
            spacing_mm=spacing,
            orientation=orientation,
            channels=[channel],
            labels={},
            foreground_box_mm=box,
        )
        for index, (shape, spacing) in enumerate(grids)
    ]
    shape, spacing = grids[0]
    summary = Summary(
        cases=len(cases),
        median_shape_ras=shape,
        median_spacing_ras_mm=spacing,
        orientations={orientation: len(cases)},
        foreground=[foreground],
        median_volume_ml={} if median_ml is None else {"organ": median_ml},
    )
    return Fingerprint(name="made", modality=[modality], summary=summary, cases=cases)
