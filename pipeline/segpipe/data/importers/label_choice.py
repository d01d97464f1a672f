"""Which labels of a DICOM tree are wanted: chosen by rules, or the only ones that there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from segpipe.data.importers.dicom_import import LabelledTree
from segpipe.data.importers.label_rules import LabelRules, parse_label_rules
from segpipe.errors import DataError, UsageError


class LabelsNotChosenError(UsageError):
    """DICOM labels have several names, and no rule says which are wanted; ``names`` counts them, for eyes alone."""

    names: Counter[str]


def choose_labels(
    tree: LabelledTree, words: Sequence[str], label_names: Sequence[str], tell: Callable[[str], None]
) -> LabelRules:
    """Return the user's rules; where everything that is labelled has one name, it needs none.

    Raises:
        LabelsNotChosenError: several names and no rule.
        UsageError: a rule that fits none.
        DataError: there are no labels.
    """
    names = tree.names()
    if not names:
        faults = "".join(f"; {file}: {fault}" for file, fault in tree.faults.items())
        raise DataError(
            "no DICOM SEG or RTSTRUCT labels these series",
            path=tree.root,
            found=f"{len(tree.labelled) + len(tree.unlabelled)} series{faults}",
            expected="series and the labels that refer to them, in one tree",
        )
    if words:
        rules = parse_label_rules(words)
        unused = rules.unused(names)
        if unused:
            raise UsageError(
                "no region or segment has such a name", found=", ".join(unused), hint="--show-names lists the names"
            )
        left_out = [name for name in names if rules.value_of(name) is None]
        if left_out:
            tell(f"left out: {len(left_out)} names that fit no --label (--show-names lists all)")
        return rules
    if len({name.casefold() for name in names}) == 1 and len(label_names) <= 1:
        return LabelRules(((next(iter(names)), 1),), {1: label_names[0] if label_names else "label_1"})
    error = LabelsNotChosenError(
        "which regions or segments are wanted?",
        found=f"{len(names)} different names",
        expected="--label 'PATTERN=VALUE:NAME', e.g. --label 'GTV*=1:tumour' --label 'node*=2:lymph node'",
        hint="--show-names lists them on this terminal: free text that somebody typed, kept nowhere",
    )
    error.names = names
    raise error
