"""`segpipe auto`: its folder, what it refuses, the page; and the whole way on generated scans, killed in between."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from segpipe.cli.app import run
from segpipe.common.files import sha256_of
from segpipe.common.processes import child_environment
from segpipe.data.fingerprint import take_fingerprint
from segpipe.data.manifest import PATIENTS_UNKNOWN, load_manifest, save_manifest
from segpipe.errors import UsageError
from segpipe.studies import auto_run
from segpipe.studies.auto_page import times
from segpipe.studies.auto_state import Asked, State
from segpipe.studies.candidates import Candidate
from segpipe.studies.search import Found
from tiny_auto import SEARCH, FakeSearch
from tiny_data import write_data


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSearch:
    fake = FakeSearch()
    monkeypatch.setattr(auto_run, "search", fake.search)
    monkeypatch.setattr(auto_run, "export", fake.export)
    monkeypatch.setattr(auto_run, "startup_seconds", lambda: 5.0)
    return fake


def auto(source: Path, out: Path, *more: str) -> int:
    return run(["auto", str(source), "--budget", "30m", "-o", str(out), *more])


def test_the_way_of_a_manifest(fake: FakeSearch, tiny_manifest: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert auto(tiny_manifest, out, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "finished"
    assert [step["status"] for step in document["steps"].values()] == ["finished"] * 6
    assert document["notes"] == [PATIENTS_UNKNOWN]
    question = fake.questions[0]
    assert [candidate.name for candidate in question.candidates] == [
        "unet+by_class+dice_ce",
        "dynunet+by_class+dice_ce",
    ]
    assert question.data.resolve() == tiny_manifest.parent.resolve()
    assert 1500 < question.seconds < 1800
    page = (out / "auto.html").read_text()
    assert PATIENTS_UNKNOWN in page and "0.812" in page and "0.799" in page
    assert all(rule["why"] in page for rule in SEARCH["plans"]["unet+light+dice_ce"]["rules"])


def test_a_folder_is_imported_and_split(fake: FakeSearch, tmp_path: Path, capsys) -> None:
    source = write_data(tmp_path / "data").parent
    (source / "manifest.json").unlink()
    for name in ("images", "labels"):
        (source / name).rename(source / f"{name}Tr")
    names = {"0": "background", "1": "liver", "2": "kidney", "3": "lesion"}
    rows = [
        {"image": f"./imagesTr/case_{number}.nii.gz", "label": f"./labelsTr/case_{number}.nii.gz"}
        for number in range(6)
    ]
    document = {"name": "made", "modality": {"0": "MRI"}, "labels": names, "training": rows, "test": []}
    (source / "dataset.json").write_text(json.dumps(document))
    out = tmp_path / "out"
    assert auto(source, out, "--patient-rule", r"regex:case_(\d)", "--folds", "2") == 0
    manifest = load_manifest(out / "manifest.json")
    assert len(manifest.folds()) == 2 and manifest.knows_patients
    assert PATIENTS_UNKNOWN not in capsys.readouterr().out
    assert fake.questions[0].data.resolve() == source.resolve()
    assert auto(source, out, "--patient-rule", r"regex:case_(\d)", "--folds", "2") == 0  # and its data is found again
    assert fake.questions[1].data.resolve() == source.resolve()
    assert fake.exported == 1


def test_a_folder_of_images_beside_one_of_labels_is_enough(fake: FakeSearch, tmp_path: Path) -> None:
    source = write_data(tmp_path / "data").parent
    (source / "manifest.json").unlink()
    names = [word for name in ("liver", "kidney", "lesion") for word in ("--label-name", name)]
    assert auto(source, tmp_path / "out", "--modality", "MRI", *names) == 0
    manifest = load_manifest(tmp_path / "out" / "manifest.json")
    assert list(manifest.foreground.values()) == ["liver", "kidney", "lesion"] and len(manifest.training) == 6
    document = json.loads((tmp_path / "out" / "auto.json").read_text())
    assert any("the folders images and labels" in note for note in document["notes"])


def test_a_test_set_is_not_opened(fake: FakeSearch, tmp_path: Path) -> None:
    path = write_data(tmp_path / "data")
    manifest = load_manifest(path)
    kept = manifest.training[5].model_copy(update={"fold": None})
    save_manifest(manifest.model_copy(update={"training": manifest.training[:5], "test": [kept]}), path)
    (path.parent / kept.image).write_bytes(b"nobody reads this")
    (path.parent / str(kept.label)).write_bytes(b"nor this")
    assert auto(path, tmp_path / "out") == 0


def test_the_bundle_will_know_its_scans_again_and_no_test_file_is_read(fake: FakeSearch, tmp_path: Path) -> None:
    path = write_data(tmp_path / "data")
    manifest = load_manifest(path)
    kept = manifest.training[5].model_copy(update={"fold": None})
    save_manifest(manifest.model_copy(update={"training": manifest.training[:5], "test": [kept]}), path)
    (path.parent / kept.image).unlink()
    assert auto(path, tmp_path / "out") == 0
    hashed = load_manifest(tmp_path / "out/manifest.json")
    assert {case.id: (case.sha256 or {}).get(case.images[0]) for case in hashed.training} == {
        case.id: sha256_of(path.parent / case.images[0]) for case in manifest.training[:5]
    }
    assert hashed.test[0].sha256 is None


def test_what_says_how_to_import_is_refused_beside_a_manifest(fake: FakeSearch, tmp_path: Path, capsys) -> None:
    path = write_data(tmp_path / "data")
    for source in (path, path.parent):
        assert auto(source, tmp_path / "out", "--patient-rule", "pairs", "--modality", "CT") == 2
        said = capsys.readouterr().err
        assert "found: --patient-rule, --modality" in said and "--overwrite" in said
    assert auto(path, tmp_path / "out") == 0
    assert "name the rule with `segpipe import --patient-rule`" in capsys.readouterr().err
    names = [word for name in ("liver", "kidney", "lesion") for word in ("--label-name", name)]
    folders = ["--images", str(path.parent / "images"), "--labels", str(path.parent / "labels")]
    rule = ["--patient-rule", r"regex:case_(\d)", "--overwrite", "--modality", "MRI"]
    assert run(["import", *folders, *names, *rule, "-o", str(path)]) == 0  # as both hints say
    assert auto(path, tmp_path / "other") == 0
    assert PATIENTS_UNKNOWN not in capsys.readouterr().err


def test_a_data_folder_is_of_a_manifest(fake: FakeSearch, tmp_path: Path, capsys) -> None:
    source = write_data(tmp_path / "data").parent
    (source / "manifest.json").unlink()
    assert auto(source, tmp_path / "out", "--data", str(source)) == 2
    assert "--data goes with a manifest" in capsys.readouterr().err


def test_a_label_map_that_is_drawn_anew_in_between_is_refused(fake: FakeSearch, tmp_path: Path, capsys) -> None:
    path = write_data(tmp_path / "data")
    assert auto(path, tmp_path / "out") == 0
    label = path.parent / "labels/case_3.nii.gz"
    before = label.read_bytes()
    label.write_bytes(before)  # as copied: the times are others
    assert auto(path, tmp_path / "out") == 0
    label.write_bytes((path.parent / "labels/case_4.nii.gz").read_bytes())
    assert auto(path, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "others than when the folder was begun" in said and "found: case_3" in said
    label.write_bytes(before)
    assert auto(path, tmp_path / "out") == 0


def test_a_test_set_that_shares_patients_with_training_is_refused(fake: FakeSearch, tmp_path: Path, capsys) -> None:
    path = write_data(tmp_path / "data")
    manifest = load_manifest(path)
    for case in manifest.training:
        case.patient_id = "P1" if case.id in ("case_0", "case_5") else case.id
    kept = manifest.training[5].model_copy(update={"fold": None})
    save_manifest(manifest.model_copy(update={"training": manifest.training[:5], "test": [kept]}), path)
    assert auto(path, tmp_path / "out") == 3
    assert "found: case_5" in capsys.readouterr().err and not fake.questions
    assert run(["split", str(path), "--test", "0.25", "--folds", "2", "--redraw"]) == 0  # as the hint says
    assert auto(path, tmp_path / "out") == 0


def test_errors_of_the_data_end_it_with_the_case(fake: FakeSearch, tmp_path: Path, capsys) -> None:
    path = write_data(tmp_path / "data")
    (path.parent / "images/case_2.nii.gz").write_bytes(b"no image")
    assert auto(path, tmp_path / "out") == 3
    said = capsys.readouterr().err
    assert "case_2" in said and "segpipe check" in said
    assert not fake.questions
    hint = said.split("see all of them: segpipe ")[1].split("\n")[0].split()
    assert run(hint) == 3


def test_other_settings_and_other_folders_are_refused(
    fake: FakeSearch, tiny_manifest: Path, tmp_path: Path, capsys
) -> None:
    assert auto(tiny_manifest, tmp_path / "out") == 0
    assert auto(tiny_manifest, tmp_path / "out", "--seed", "4") == 2
    assert "begun with other settings" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("mine")
    assert auto(tiny_manifest, tmp_path / "full") == 2
    assert "not of `segpipe auto`" in capsys.readouterr().err
    assert auto(tiny_manifest, tmp_path / "other", "--folds", "5") == 2
    assert "has its folds already" in capsys.readouterr().err
    assert auto(tiny_manifest, tmp_path / "third", "--candidate", "vnet") == 2
    assert "no network fragment 'vnet'" in capsys.readouterr().err


def test_a_wrong_path_binds_nothing_and_another_data_set_is_refused(
    fake: FakeSearch, tiny_manifest: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    assert auto(tmp_path / "no where", out, "--seed", "3") == 2
    assert "there is no such file or folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert auto(tmp_path / "empty", out, "--seed", "3") == 2
    assert "no data set is found here" in capsys.readouterr().err
    assert auto(tiny_manifest, out) == 0
    other = write_data(tmp_path / "other")
    save_manifest(load_manifest(other).model_copy(update={"name": "other"}), other)
    assert auto(other, out) == 2
    assert "another data set" in capsys.readouterr().err
    assert json.loads((out / "auto.json").read_text())["status"] == "finished"


def test_a_data_set_is_known_again_where_the_output_lies_in_it(tmp_path: Path) -> None:
    source, out = tmp_path / "data", tmp_path / "data/auto"
    for name in ("a", "b"):
        (source / name).mkdir(parents=True)
        (source / name / "slice.png").write_text(name)
    out.mkdir()
    state = State(Asked(source, out, 60.0), len)
    with state.step("import"):
        (out / "search").mkdir()
    (source / ".DS_Store").write_text("")
    assert State(Asked(source, out, 60.0), len).is_finished("import")
    (source / "b/more.png").write_text("more")
    with pytest.raises(UsageError, match="another data set"):
        State(Asked(source, out, 60.0), len)


@pytest.mark.parametrize(
    "damage",
    [
        lambda document: document.update(steps=[]),
        lambda document: document.update(settings="none"),
        lambda document: document.update(notes=None),
        lambda document: document["steps"]["search"].update(seconds="many"),
        lambda document: document["steps"].update(other={"status": "finished", "seconds": 0, "decided": {}}),
    ],
)
def test_a_state_that_was_damaged_is_said(
    fake: FakeSearch, tiny_manifest: Path, tmp_path: Path, capsys, damage
) -> None:
    out = tmp_path / "out"
    assert auto(tiny_manifest, out) == 0
    document = json.loads((out / "auto.json").read_text())
    damage(document)
    (out / "auto.json").write_text(json.dumps(document))
    assert auto(tiny_manifest, out) == 3
    assert "this is not the state of `segpipe auto`" in capsys.readouterr().err
    (out / "auto.json").write_text("{")
    assert auto(tiny_manifest, out) == 3
    assert "another -o" in capsys.readouterr().err


def test_before_the_search_other_settings_begin_anew(fake: FakeSearch, tiny_manifest: Path, tmp_path: Path) -> None:
    source = write_data(tmp_path / "data")
    document = json.loads(source.read_text())
    for case in document["training"]:
        del case["fold"]
    source.write_text(json.dumps(document))
    out = tmp_path / "out"
    assert auto(source, out, "--folds", "99") == 2  # too many for these cases; its hint asks for fewer
    assert auto(source, out, "--folds", "3") == 0
    assert len(load_manifest(out / "manifest.json").folds()) == 3
    assert auto(source, out, "--folds", "2") == 2  # from the search on they are bound


def test_cases_of_one_patient_are_said(fake: FakeSearch, tmp_path: Path, capsys) -> None:
    source = write_data(tmp_path / "data")
    document = json.loads(source.read_text())
    for case in document["training"]:
        del case["fold"]
        case["patient_id"] = "the same"
    source.write_text(json.dumps(document))
    assert auto(source, tmp_path / "out") == 3
    assert "cases of two patients or more" in capsys.readouterr().err


def test_what_can_be_made_again_is_made_again(fake: FakeSearch, tiny_manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert auto(tiny_manifest, out) == 0
    sound = (out / "fingerprint.json").read_text()
    (out / "fingerprint.json").write_text(sound[:100])
    (out / "auto.html").unlink()
    shutil.rmtree(out / "bundle", ignore_errors=True)
    assert auto(tiny_manifest, out) == 0
    assert (out / "fingerprint.json").read_text() == sound
    assert (out / "auto.html").is_file() and fake.exported == 2


def test_an_interruption_names_what_goes_on(fake: FakeSearch, tiny_manifest: Path, tmp_path: Path, capsys) -> None:
    fake.stop = True
    assert auto(tiny_manifest, tmp_path / "out") == 130
    assert "the same command goes on" in capsys.readouterr().err
    state = json.loads((tmp_path / "out/auto.json").read_text())
    assert state["steps"]["check"]["status"] == "finished" and state["steps"]["search"]["status"] == "running"
    fake.stop = False
    assert auto(tiny_manifest, tmp_path / "out") == 0
    assert fake.questions[0].seconds == fake.questions[1].seconds  # decided once


def test_a_second_process_is_kept_out(
    fake: FakeSearch, tiny_manifest: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    real, codes = fake.search, []

    def meanwhile(*given: Any) -> Found:
        codes.append(auto(tiny_manifest, tmp_path / "out"))
        return real(*given)

    monkeypatch.setattr(auto_run, "search", meanwhile)
    assert auto(tiny_manifest, tmp_path / "out") == 0
    assert codes == [2]
    assert "another process works in this folder" in capsys.readouterr().err


def test_times_add_up(fake: FakeSearch, tiny_manifest: Path, tmp_path: Path) -> None:
    assert auto(tiny_manifest, tmp_path / "out") == 0
    state = json.loads((tmp_path / "out/auto.json").read_text())
    state["steps"]["search"]["seconds"] = 500.0
    rows = times(state, SEARCH)
    assert sum(real for _, _, real in rows) == pytest.approx(sum(step["seconds"] for step in state["steps"].values()))
    training = {name: (foreseen, real) for name, foreseen, real in rows if name.startswith("training")}
    assert training == {"training unet+light+dice_ce, folds: 2": (2 * 90.0, 190.0)}
    beside = {name: (foreseen, real) for name, foreseen, real in times(state, {**SEARCH, "jobs": 2})}
    assert beside["training unet+light+dice_ce, folds: 2, 2 at the same time"] == (90.0, 95.0)


def test_a_search_that_was_begun_one_after_the_other_goes_on_so(
    fake: FakeSearch, tiny_manifest: Path, tmp_path: Path
) -> None:
    fake.stop = True
    assert auto(tiny_manifest, tmp_path / "out") == 130
    state = json.loads((tmp_path / "out/auto.json").read_text())
    del state["steps"]["search"]["decided"]["jobs"]
    (tmp_path / "out/auto.json").write_text(json.dumps(state))
    fake.stop = False
    assert auto(tiny_manifest, tmp_path / "out") == 0
    assert fake.questions[1].jobs == 1


def test_usual_candidates_draw_by_class_where_labels_are_several(tiny_manifest: Path) -> None:
    manifest = load_manifest(tiny_manifest)
    seen = take_fingerprint(manifest, tiny_manifest.parent)
    assert auto_run.usual_candidates(manifest, seen)[0] == Candidate("unet", "by_class")
    one = manifest.model_copy(update={"labels": {"0": "background", "1": "liver"}})
    assert auto_run.usual_candidates(one, seen)[0] == Candidate("unet", "light")


def test_a_network_of_slices_is_the_second_candidate_where_slices_are_thick(tiny_manifest: Path) -> None:
    manifest = load_manifest(tiny_manifest)
    seen = take_fingerprint(manifest, tiny_manifest.parent)
    assert [each.network for each in auto_run.usual_candidates(manifest, seen)] == ["unet", "dynunet"]
    for spacing, by_slices in (((1.0, 1.0, 5.0), True), ((5.0, 1.0, 1.0), True), ((1.0, 1.0, 4.9), False)):
        cases = [case.model_copy(update={"spacing_mm": spacing}) for case in seen.cases]
        found = auto_run.usual_candidates(manifest, seen.model_copy(update={"cases": cases}))
        assert [each.network for each in found] == (["unet", "unet_2d"] if by_slices else ["unet", "dynunet"])


@pytest.mark.slow
def test_the_whole_way_killed_in_between(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest, out = write_data(tmp_path / "data", cases=4), tmp_path / "out"
    words = ["auto", str(manifest), "--budget", "40s", "-o", str(out), "--candidate", "unet"]
    command = [sys.executable, "-m", "segpipe", *words]
    with subprocess.Popen(command, env=child_environment(), stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            if "fold_0 epoch" in line:
                process.send_signal(signal.SIGKILL)
                break
    killed = json.loads((out / "auto.json").read_text())
    assert killed["status"] == "running" and killed["steps"]["search"]["status"] == "running"
    plans = json.loads((out / "search/search.json").read_text())["plans"]
    assert run([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    search = json.loads((out / "search/search.json").read_text())
    assert search["plans"] == plans  # measured once
    assert document["result"]["chosen"] == "unet+light+dice_ce"
    assert document["result"]["seconds"] > killed["steps"]["search"]["seconds"]
    metadata = json.loads((out / "bundle/configs/metadata.json").read_text())
    assert len(metadata["members"]) == 2
    figures = json.loads((out / "search/candidates/unet+light+dice_ce/run/out_of_fold.json").read_text())
    assert len(figures["cases"]) == 4
    assert document["result"]["figure"]["raw"] == figures["figure"]["raw"]
    assert "–" in (out / "auto.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in (out / "search").rglob("*.pt")}
    assert run([*words, "--json"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "search").rglob("*.pt")} == before
