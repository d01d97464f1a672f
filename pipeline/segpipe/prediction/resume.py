"""What a result folder already holds, and whether this batch may go on in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.common.files import read_json, sha256_of
from segpipe.common.result_folder import MAPPING, RESULT, ResultFolder, read_events, read_lines
from segpipe.errors import RefusedError, SegpipeError
from segpipe.prediction.file_cases import InputCase
from segpipe.prediction.options import Options

if TYPE_CHECKING:
    from segpipe.bundle import Bundle


def refuse_own_folder(out: Path, bundle: Bundle) -> None:
    """Refuse results in a bundle's folder: they would make it another bundle than its SHA256SUMS says.

    Raises:
        RefusedError: the result folder is the bundle or lies in it.
    """
    if out.resolve().is_relative_to(bundle.root.resolve()):
        raise RefusedError(
            "the result folder lies in the bundle",
            path=out,
            hint="choose a folder outside: a bundle stays as it was exported",
        )


class EarlierResults:
    """The result folder as a batch finds it; it is opened here, unless the batch would spoil what is in it.

    Attributes:
        folder: that results are written to.
        done: ``result.json`` by id of the cases that were finished with this very model, with all that their source
            allows of what is asked; a series that has other slices now is not done.
        changed: why a finished case is neither kept as done nor computed again: its file shows something else now.
        refused: files of each series that was refused before.

    Raises:
        RefusedError: it holds results of another bundle, or of another file of a case's name, or something that is no
            result has a case's name.
        UsageError: it cannot be written to.
    """

    def __init__(self, out: Path, bundle: Bundle, cases: Sequence[InputCase], options: Options) -> None:
        self._bundle, self._options = bundle, options
        starts = [] if options.overwrite else [event for event in read_events(out) if event.get("event") == "start"]
        if starts:
            _refuse_other_bundle(out, starts[-1], bundle, options)
        mapping = [entry for entry in read_lines(out / MAPPING) if isinstance(entry, dict) and "id" in entry]
        self.refused = {entry["id"]: entry.get("paths", []) for entry in mapping if "refused" in entry}
        self._sources = {entry["id"]: entry for entry in mapping if "refused" not in entry and entry.get("paths")}
        self.changed: dict[str, RefusedError] = {}
        for case in () if options.overwrite else cases:
            if case.paths and case.id in self._sources and (out / case.id / RESULT).is_file():
                before = self._sources[case.id]
                _refuse_other_file(case, before)
                if _has_changed(case, before):
                    self.changed[case.id] = _changed(case)
        self.folder = ResultFolder(out)
        taken = next((case.id for case in cases if self.folder.is_taken(case.id)), None)
        if taken is not None:  # such as a patient's own folder of scans
            raise RefusedError(
                "something that is no result has the name of a case's result",
                path=self.folder.final(taken),
                case_id=taken,
                hint="choose an empty or new folder for results",
            )
        finished = [] if options.overwrite else [case for case in cases if self._is_finished(case.id)]
        results = {case.id: self._result_of(case) for case in finished}
        self.done = {case_id: result for case_id, result in results.items() if result is not None}

    def _is_finished(self, case_id: str) -> bool:
        return case_id not in self.changed and self.folder.is_finished(case_id)

    def _result_of(self, case: InputCase) -> dict[str, Any] | None:
        """Return the result of a finished case, None where it has to be computed again."""
        final = self.folder.final(case.id)
        try:
            result: dict[str, Any] = read_json(final / RESULT)
            same = bool(result["bundle"]["sha256"] == self._bundle.sha256) and _is_same_model(result, self._options)
        except (SegpipeError, AttributeError, KeyError, TypeError):
            return None
        if _has_other_slices(case, self._sources.get(case.id, {})):
            return None
        is_met = same and self._options.outputs.are_met(result, final, self._bundle, is_dicom=case.is_dicom)
        return result if is_met else None


def _refuse_other_bundle(out: Path, start: Mapping[str, Any], bundle: Bundle, options: Options) -> None:
    """Refuse to fill one folder from two models by mistake.

    Raises:
        RefusedError: the last start in this folder named another bundle, or averaged other scores.
    """
    if start.get("bundle") != bundle.sha256:
        raise RefusedError(
            "the folder holds results of another bundle",
            path=out,
            found=f"{start.get('name')} ({str(start.get('bundle'))[:12]})",
            expected=f"{bundle.name} ({bundle.sha256[:12]})",
            hint="choose another folder, or give --overwrite",
        )
    if not _is_same_model(start, options):
        before = {"ensemble": [], "mirror": [], **start}
        raise RefusedError(
            "the folder holds results with another ensemble, or otherwise mirrored",
            path=out,
            found=f"{len(before['ensemble'])} further bundles, mirrored: {','.join(before['mirror']) or 'no'}",
            expected=f"{len(options.ensemble)} further bundles, mirrored: {','.join(options.model.mirror) or 'no'}",
            hint="choose another folder, or give --overwrite",
        )


def _is_same_model(before: Mapping[str, Any], options: Options) -> bool:
    """Return whether a start or a result names the same further bundles and mirrored axes; older ones name none."""
    return all(before.get(key, []) == value for key, value in options.about_model().items())


def _has_other_slices(case: InputCase, before: Mapping[str, Any]) -> bool:
    if case.series is None:
        return False
    from segpipe.dicom import has_other_slices

    return has_other_slices(case.series, before)


def _refuse_other_file(case: InputCase, before: Mapping[str, Any]) -> None:
    """Refuse to pass over a scan because another one of its name was segmented before.

    Raises:
        RefusedError: the finished case came from another file.
    """
    now = [str(path) for path in case.paths]
    if not case.is_dicom and before["paths"] != now:
        raise RefusedError(
            "this case was finished from another file",
            path=now[0],
            found=before["paths"][0],
            case_id=case.id,
            hint="choose another folder, or give --overwrite; --pseudonymise makes ids of paths",
        )


def _changed(case: InputCase) -> RefusedError:
    return RefusedError(
        "the file of this case has changed since it was finished",
        path=case.paths[0],
        found="slices of the same UIDs that show or lie otherwise" if case.is_dicom else None,
        case_id=case.id,
        hint="move the folder of its result away and give the same command again, or give --overwrite, which computes "
        "all cases again",
    )


def describe_source(case: InputCase) -> dict[str, Any]:
    """Return what tells a case's files again: size and time, and their hashes; empty where one cannot be read.

    Of a series it is as `segpipe.dicom.describe_series` says.
    """
    if case.series is not None:
        from segpipe.dicom import describe_series

        return dict(describe_series(case.series))
    if not all(path.is_file() for path in case.files):  # a pipe would be waited for
        return {}
    try:
        return {"stat": _stat(case), "sha256": [sha256_of(path) for path in case.files]}
    except OSError:  # the worker says why
        return {}


def _stat(case: InputCase) -> list[list[int]]:
    return [[status.st_size, status.st_mtime_ns] for status in (path.stat() for path in case.files)]


def _has_changed(case: InputCase, before: Mapping[str, Any]) -> bool:
    """Judge by size and time, and where these differ by content: a copy of the same file has not changed."""
    if case.series is not None:
        from segpipe.dicom import has_other_content, has_other_slices

        return not has_other_slices(case.series, before) and has_other_content(case.series, before)
    try:
        return (
            "sha256" in before and _stat(case) != before["stat"] and describe_source(case)["sha256"] != before["sha256"]
        )
    except (OSError, KeyError):  # gone or not to be read: then there is nothing to compare with
        return False
