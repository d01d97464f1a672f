"""Everything that a comparison leaves beside its runs: compare.json, compare.csv, figures, report.html, compare.md."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.compare.cells import Place
from pipeline.compare.page import write_report
from pipeline.compare.pictures import draw_all
from pipeline.compare.results import Row, gather, plain_results
from pipeline.compare.state import State
from pipeline.compare.tables import case_columns, case_lines
from pipeline.compare.variants import Settings
from pipeline.files import write_csv
from pipeline.manifest import Manifest


def write_outcome(
    state: State, settings: Settings, manifest: Manifest, place: Place, gifs: Sequence[str] = ()
) -> list[Row]:
    """Gather the finished runs and write table, figures and report; older ones are replaced.

    Args:
        state: of the comparison; it gets the results and is not written.
        settings: of the comparison.
        manifest: of the data.
        place: where everything is.
        gifs: ids of cases to animate; empty for the best variant's worst and median.

    Raises:
        UsageError: the folder cannot be written to.
    """
    rows = gather(state, settings, manifest, place)
    state.document["results"] = plain_results(rows, state, manifest, place)
    write_csv(place.out / "compare.csv", case_lines(rows), case_columns(rows))
    figures = draw_all(rows, manifest, place, gifs)
    write_report(place, rows, figures, settings, state.document)
    return rows
