"""A finished case whose result.json is damaged: page and table are written all the same, and it is among them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from segpipe.common.files import write_json
from segpipe.common.result_folder import RESULT, STATE, SUMMARY_CSV, SUMMARY_JSON, append_line
from segpipe.prediction import refresh_summary
from segpipe.prediction.batch_summary import collect


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "7"])
def test_the_summary_is_written_with_what_is_whole(text: str, tmp_path: Path) -> None:
    for id in ("damaged", "whole"):
        (tmp_path / id).mkdir()
        append_line(tmp_path / STATE, {"event": "done", "id": id, "seconds": 1.0})
    (tmp_path / "damaged" / RESULT).write_text(text)
    write_json(tmp_path / "whole" / RESULT, {"id": "whole", "labels": {"liver": 1}, "volumes_ml": {"liver": 2.0}})
    assert [(row["id"], row["state"], row["volumes_ml"]) for row in collect(tmp_path)] == [
        ("damaged", "done", None),
        ("whole", "done", {"liver": 2.0}),
    ]
    if text not in ("", "{"):  # what cannot be parsed is said, and the summary of before stays
        facts = {"name": "organs", "version": "1.0.0", "sha256": "b" * 64, "signed_by": None}
        about = {"bundle": facts, "ensemble": [], "mirror": [], "not_selected": [], "passed_over": {}}
        write_json(tmp_path / SUMMARY_JSON, about)
        (tmp_path / SUMMARY_CSV).write_text("id,state,detail,liver_ml\n")
        assert refresh_summary(tmp_path)
        with (tmp_path / SUMMARY_CSV).open() as stream:
            assert {row["id"]: row["liver_ml"] for row in csv.DictReader(stream)} == {"damaged": "", "whole": "2.0"}
