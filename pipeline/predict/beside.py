"""What lies beside a label map where it was asked for: probabilities of all classes or of some, and entropy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError
from pipeline.predict.outcome import Options
from pipeline.results import ENTROPY, PROBABILITIES, probability_name

if TYPE_CHECKING:
    from pipeline.bundle import Bundle


def files_beside(bundle: Bundle, options: Options) -> dict[str, Any]:
    """File names as ``result.json`` has them; those of single labels by the label's name.

    Raises:
        UsageError: a label that the bundle does not have, or both kinds of probabilities.
    """
    if options.probabilities and options.probabilities_of:
        raise UsageError(
            "all probabilities are asked for, and some", found="--probabilities and --probabilities-of",
            expected="one of the two",
        )  # fmt: skip
    files: dict[str, Any] = {}
    if options.probabilities:
        files["probabilities"] = PROBABILITIES
    if options.probabilities_of:
        values = [_value_of(word, bundle) for word in options.probabilities_of]
        files["probability"] = {bundle.labels[value]: probability_name(value) for value in values}
    if options.entropy:
        files["entropy"] = ENTROPY
    return files


def names_beside(files: dict[str, Any]) -> Iterator[str]:
    """All file names of `files_beside`."""
    for entry in files.values():
        yield from entry.values() if isinstance(entry, dict) else [entry]


def request_beside(bundle: Bundle, options: Options, into: Path) -> dict[str, Any]:
    """The same as the worker is asked for it, in a folder."""
    files = files_beside(bundle, options)
    whole = ("probabilities", "entropy")
    request: dict[str, Any] = {name: str(into / files[name]) for name in whole if name in files}
    values = {name: value for value, name in bundle.labels.items()}
    first = 1 if bundle.activation == "sigmoid" else 0  # the label that is the first channel
    single = [[values[name] - first, str(into / file)] for name, file in files.get("probability", {}).items()]
    return {**request, "single": single} if single else request


def _value_of(word: str, bundle: Bundle) -> int:
    """The label that a name or a value means."""
    known = {value: name for value, name in bundle.labels.items() if value or bundle.activation != "sigmoid"}
    found = [value for value, name in known.items() if word in (name, str(value))]
    if len(found) != 1:
        raise UsageError(
            "the bundle has no such label", found=word,
            expected=", ".join(f"{name} ({value})" for value, name in known.items()),
        )  # fmt: skip
    return found[0]
