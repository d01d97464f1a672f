from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.cli.app import run
from segpipe.data.manifest import Case, Manifest, load_manifest, save_manifest
from segpipe.data.splits import chosen_folds, draw_split, find_leaks, parse_test_size, patients_note
from segpipe.errors import DataError, RefusedError, UsageError


def dataset(sizes: list[int], **fields: object) -> Manifest:
    """A manifest with patients of these numbers of cases."""
    cases = [
        Case(id=f"c{patient}_{index}", image=f"i/{patient}_{index}.nii", label="l.nii", patient_id=f"P{patient}")
        for patient, size in enumerate(sizes)
        for index in range(size)
    ]
    return Manifest(name="d", modality={"0": "MRI"}, labels={"0": "background", "1": "x"}, training=cases, **fields)


def parts(manifest: Manifest) -> dict[str, object]:
    return {case.id: case.fold for case in manifest.training} | {case.id: "test" for case in manifest.test}


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=8, max_size=40),
    test=st.one_of(st.integers(0, 8), st.floats(0.01, 0.3)),
    folds=st.sampled_from([0, 2, 3]),
    seed=st.integers(0, 99),
)
def test_whole_patients_every_case_once_balanced_and_independent_of_order(sizes, test, folds, seed):
    manifest = dataset(sizes)
    try:
        split = draw_split(manifest, test, folds, seed)
    except UsageError:
        assert len(sizes) < 14
        return
    assert sorted(parts(split)) == sorted(case.id for case in manifest.training)
    for patient in range(len(sizes)):
        assert len({parts(split)[f"c{patient}_{index}"] for index in range(sizes[patient])}) == 1
    wanted = test if isinstance(test, int) else test * sum(sizes)
    assert wanted <= len(split.test) < wanted + max(sizes) + 1
    assert folds == len(split.folds())
    assert not folds or max(split.fold_sizes()) - min(split.fold_sizes()) <= max(sizes)
    assert find_leaks(split) == []

    shuffled = manifest.model_copy(deep=True)
    random.Random(seed).shuffle(shuffled.training)
    assert draw_split(shuffled, test, folds, seed) == split
    Manifest.model_validate(split.dump())


def test_pairs_and_singles_give_folds_that_differ_by_one_case_at_most():
    split = draw_split(dataset([2] * 31 + [1] * 17), 0, 5)
    assert max(split.fold_sizes()) - min(split.fold_sizes()) <= 1


def test_the_seed_changes_the_draw_and_the_rule_names_it():
    one, other = (draw_split(dataset([2] * 20), 10, 2, seed) for seed in (0, 1))
    assert parts(one) != parts(other)
    assert "seed 1" in (other.split_rule or "")


def test_a_second_draw_is_refused_unless_asked_for():
    split = draw_split(dataset([2] * 20), 10, 5)
    with pytest.raises(RefusedError, match="already"):
        draw_split(split, 10, 5)
    assert draw_split(split, 10, 5, redraw=True) == split
    assert len(draw_split(split, 0, 0, redraw=True).training) == 40


def test_what_a_first_stage_was_trained_on_is_not_drawn_for_a_test():
    two = {"modality": {"0": "MRI", "1": "mask of x"}, "first_stage": {"labels": ["x"], "weights_sha256": ["a" * 64]}}
    second = Manifest.model_validate({**dict(draw_split(dataset([1] * 8), None, 2)), **two})
    with pytest.raises(RefusedError, match="first stage was trained on every case") as caught:
        draw_split(second, 2, 2, redraw=True)
    assert caught.value.hint == "--test keep --redraw draws folds anew"
    anew = draw_split(second, parse_test_size("keep"), 4, redraw=True)
    assert anew.test == [] and anew.folds() == [0, 1, 2, 3]


def test_keep_leaves_the_test_set_and_unlabelled_test_cases_always_stay():
    manifest = dataset([1] * 10)
    manifest.test = [Case(id="u", image="u.nii"), Case(id="t", image="t.nii", label="t.nii")]
    with pytest.raises(RefusedError):
        draw_split(manifest, 2, 2)
    assert [case.id for case in draw_split(manifest, None, 2).test] == ["t", "u"]
    redrawn = draw_split(manifest, 2, 2, redraw=True)
    assert "u" in [case.id for case in redrawn.test] and len(redrawn.test) == 3


def test_a_kept_test_set_that_shares_a_patient_is_refused():
    manifest = dataset([1] * 10)
    manifest.test = [Case(id="t", image="t.nii", label="t.nii", patient_id="P3")]
    assert find_leaks(manifest) == ["P3"]
    with pytest.raises(DataError, match="patients of the test set") as caught:
        draw_split(manifest, None, 2)
    assert caught.value.found == "t"
    manifest.test[0].label = None
    assert find_leaks(manifest) == ["P3"] and find_leaks(manifest, labelled_only=True) == []


def test_a_patient_in_two_folds_is_a_leak():
    split = draw_split(dataset([2] * 6), 0, 3)
    split.training[0].fold = (split.training[0].fold + 1) % 3
    assert find_leaks(split) == ["P0"]


@pytest.mark.parametrize(("test", "folds"), [(0, 7), (2, 5), (6, 0)])
def test_more_parts_than_patients_are_refused(test, folds):
    with pytest.raises(UsageError, match="too few patients"):
        draw_split(dataset([1] * 6), test, folds)


@pytest.mark.parametrize("folds", [-1, 1])
def test_senseless_folds(folds):
    with pytest.raises(UsageError, match="folds"):
        draw_split(dataset([1] * 6), 0, folds)


@pytest.mark.parametrize(("text", "size"), [("0.25", 0.25), ("45", 45), ("0", 0), ("1", 1), ("keep", None)])
def test_sizes(text, size):
    assert parse_test_size(text) == size


@pytest.mark.parametrize("text", ["1.0", "0.0", "-3", "1e9", "half", "nan", "1.5"])
def test_sizes_that_are_none(text):
    with pytest.raises(UsageError):
        parse_test_size(text)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "manifest.json"
    save_manifest(dataset([2] * 20), path)
    assert run(["split", str(path), "--test", "0.25", "--folds", "3", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1 and document["test"] == 10 and document["folds"] == [10, 10, 10]
    assert load_manifest(path).folds() == [0, 1, 2]
    assert run(["split", str(path)]) == 5
    assert "--redraw" in capsys.readouterr().err
    assert run(["split", str(path), "--redraw", "-o", str(tmp_path / "x" / "other.json")]) == 0
    assert "other.json" in capsys.readouterr().out
    assert run(["split", str(tmp_path / "no.json")]) == 2


def test_cases_of_unknown_patients_are_not_counted_as_patients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, path = dataset([1] * 8), tmp_path / "manifest.json"
    for case in manifest.cases():
        case.patient_id = None
    save_manifest(manifest, path)
    assert run(["split", str(path), "--test", "2", "--folds", "7"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "too few cases for this split" in said and "8 cases, patients unknown; 2 drawn for test" in said
    assert run(["split", str(path), "--test", "2", "--folds", "3"]) == 0
    assert capsys.readouterr().out.count("│ unknown") == 4


def test_the_shipped_split_is_what_the_documented_command_draws():
    path = Path(__file__).parents[2] / "data_manifests" / "msd_task04_hippocampus.json"
    shipped = load_manifest(path)
    assert draw_split(shipped, 45, 5, 0, redraw=True) == shipped
    assert find_leaks(shipped) == [] and len(shipped.test) >= 45
    assert len({case.patient_id for case in shipped.cases()}) == 129
    assert all(set(case.sha256 or {}) == set(case.paths) for case in shipped.cases())


def test_the_folds_of_a_cross_validation() -> None:
    split = draw_split(dataset([1] * 9), 0, 3)
    assert chosen_folds(split, "all") == (0, 1, 2)
    assert chosen_folds(split, "2, 0") == chosen_folds(split, [0, 2, 2]) == (0, 2)
    for folds, words in (("1,5", "no such fold"), ("", "cannot be read"), ([], "no such fold"), ("one", "cannot be")):
        with pytest.raises(UsageError, match=words):
            chosen_folds(split, folds)
    with pytest.raises(UsageError, match="at least two folds"):
        chosen_folds(dataset([1] * 9), "all")


def test_out_of_fold_are_the_cases_that_some_fold_leaves_out() -> None:
    split = draw_split(dataset([2] * 6), 2, 2)
    assert split.select("out_of_fold") == split.training
    split.training[0].fold = None
    assert split.select("out_of_fold") == split.training[1:]


def test_what_makes_the_figures_of_folds_doubtful() -> None:
    split = draw_split(dataset([2, 2, 2, 1]), 0, 2)
    assert patients_note(split) is None
    torn = next(case for case in split.training if case.id == "c0_0")
    torn.fold = 1 - torn.fold
    assert patients_note(split) == "1 of 4 patients have cases in several folds: figures may be too good"
    next(case for case in split.training if case.id == "c3_0").patient_id = None
    assert patients_note(split) == (
        "patients of 1 of 7 cases unknown: figures may be too good; "
        "1 of 4 patients have cases in several folds: figures may be too good"
    )
    for case in split.cases():
        case.patient_id = None
    assert patients_note(split) == "patients unknown: figures may be too good"
    assert patients_note(split.model_copy(update={"patient_rule": "regex:x"})) is None
