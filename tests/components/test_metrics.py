"""The Ignite metrics against hand-computed cases, torchmetrics, and what evaluation reports."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import DataLoader, MetaTensor
from torchmetrics.functional.classification import binary_calibration_error
from torchmetrics.functional.segmentation import dice_score

from segpipe.cli.app import run
from segpipe.components.label_metrics import CalibrationError, CaseDice, CaseMetric, PooledMetric, SoftDice
from segpipe.errors import UsageError
from segpipe.evaluation import measure
from segpipe.evaluation.measure.case_measures import measure_case
from segpipe.evaluation.measure.overlap import mean_defined
from tiny_data import train_arguments

NAMES = ["background", "a", "b"]
SPACING = (0.7, 1.2, 3.0)
CASE_MEASURES = (
    "dice",
    "iou",
    "precision",
    "recall",
    "specificity",
    "nsd",
    "hd_mm",
    "hd95_mm",
    "assd_mm",
    "lesion_f1",
    "lesion_dice",
    "difference_ml",
)


def volume(*values: int) -> torch.Tensor:
    return torch.tensor(values).reshape(1, -1, 1, 1)


def measured(*pairs: tuple[torch.Tensor, torch.Tensor]) -> CaseDice:
    metric = CaseDice(NAMES)
    metric.reset()
    for prediction, truth in pairs:
        metric.update(([prediction], [truth]))
    return metric


def cases(n: int = 4) -> list[dict[str, torch.Tensor]]:
    """Label maps with an affine and logits; the second has no label b, the third nothing at all in truth."""
    rng = np.random.default_rng(7)
    found = []
    for index in range(n):
        truth = (rng.random((1, 8, 7, 6)) ** 4 * 3).astype(np.uint8)
        truth[truth == 2] = 2 if index != 1 else 0
        if index == 2:
            truth[:] = 0
        prediction = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, 3, truth.shape))
        affine = torch.diag(torch.tensor([*SPACING, 1.0]))
        found.append(
            {
                "pred": MetaTensor(torch.from_numpy(prediction).float(), affine=affine),
                "label": MetaTensor(torch.from_numpy(truth), affine=affine),
                "logits": torch.from_numpy(rng.normal(size=(3, 8, 7, 6)).astype(np.float32)),
            }
        )
    return found


def through_engine(metrics: dict, data: list, batch_size: int = 2) -> dict:
    engine = Engine(lambda _, batch: batch)
    for name, metric in metrics.items():
        metric.attach(engine, name)
    engine.run([data[start : start + batch_size] for start in range(0, len(data), batch_size)])
    return engine.state.metrics


def test_policy_for_empty_labels() -> None:
    perfect = volume(1, 1, 2, 0)
    assert measured((perfect, perfect)).compute() == 1
    # predicted but absent: 0 and counted; absent in both: not counted
    assert measured((volume(1, 2, 0, 0), volume(1, 0, 0, 0))).compute() == pytest.approx(0.5)
    assert measured((volume(1, 0, 0, 0), volume(1, 0, 0, 0))).compute() == 1
    # a case with nothing in it says nothing
    assert measured((perfect, perfect), (volume(0, 0, 0, 0), volume(0, 0, 0, 0))).compute() == 1
    assert measured((volume(0, 0, 0, 0), volume(0, 0, 0, 0))).compute() == 0
    # mean over cases of the mean over labels
    assert measured((perfect, perfect), (volume(1, 1, 0, 0), volume(0, 1, 0, 0))).compute() == pytest.approx(
        (1 + 2 / 3) / 2
    )


def test_against_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, truth = (torch.randint(0, 3, (4, 1, 6, 5, 4), generator=generator) for _ in range(2))
    metric = CaseDice(NAMES)
    metric.reset()
    metric.update((list(prediction), list(truth)))
    expected = dice_score(
        prediction[:, 0], truth[:, 0], num_classes=3, include_background=False, average="none", input_format="index"
    ).mean(1)
    assert metric.compute() == pytest.approx(float(expected.mean()), abs=1e-6)


def test_labels_are_put_beside_the_mean() -> None:
    engine = Engine(lambda _, pair: [{"pred": pair[0], "label": pair[1]}])
    CaseDice(NAMES).attach(engine, "val_mean_dice")
    engine.run([(volume(1, 2, 0, 0), volume(1, 0, 0, 0))])
    assert engine.state.metrics == {"val_mean_dice": 0.5, "dice_a": 1.0, "dice_b": 0.0}


def test_every_case_metric_is_what_evaluation_reports() -> None:
    data = cases()
    metrics = {name: CaseMetric(name, NAMES, tolerance_mm=1.3) for name in CASE_MEASURES}
    found = through_engine(metrics, data)
    reports = [
        measure_case(case["label"][0].numpy(), case["pred"][0].numpy().astype(np.uint8), {1: "a", 2: "b"}, SPACING, 1.3)
        for case in data
    ]
    for name in CASE_MEASURES:
        by_case = [mean_defined(getattr(label, name) for label in report) for report in reports]
        assert found[name] == pytest.approx(mean_defined(by_case)), name
        for index, label in enumerate(["a", "b"]):
            values = [getattr(report[index], name) for report in reports]
            assert found[f"{name}_{label}"] == pytest.approx(mean_defined(values)), name


def test_distances_need_a_spacing_and_take_the_one_that_is_given() -> None:
    truth, prediction = torch.zeros(2, 1, 9, 5, 5)
    truth[0, 1:3, 1:3, 1:3] = 1
    prediction[0, 3:5, 1:3, 1:3] = 1
    for name in ("hd95_mm", "nsd"):
        with pytest.raises(UsageError, match="spacing is not known"):
            through_engine({"x": CaseMetric(name, NAMES)}, [{"pred": prediction, "label": truth}])
    given = {"hd": CaseMetric("hd_mm", NAMES, spacing_mm=(5, 1, 1))}
    assert through_engine(given, [{"pred": prediction, "label": truth}])["hd"] == 10
    affine = torch.diag(torch.tensor([2.5, 1, 1, 1]))
    meta = [{"pred": prediction, "label": MetaTensor(truth, affine=affine)}]
    assert through_engine({"hd": CaseMetric("hd_mm", NAMES)}, meta)["hd"] == 5


def test_what_is_not_defined_is_left_out_and_not_kept_from_before() -> None:
    nothing = {"pred": volume(0, 0), "label": volume(0, 0)}
    some = {"pred": volume(1, 0), "label": volume(1, 0)}
    engine = Engine(lambda _, batch: batch)
    CaseMetric("hd_mm", NAMES, spacing_mm=(1, 1, 1)).attach(engine, "hd")
    CaseMetric("recall", NAMES).attach(engine, "recall")
    PooledMetric("recall", NAMES).attach(engine, "pooled")
    engine.run([[some]])
    assert engine.state.metrics == {"hd": 0, "hd_a": 0, "recall": 1, "recall_a": 1, "pooled": 1, "pooled_a": 1}
    engine.run([[nothing]])
    assert engine.state.metrics == {"recall": 0, "pooled": 0}  # scores of nothing never look good


@pytest.mark.parametrize("name", ["dice", "iou", "precision", "recall", "specificity"])
def test_pooled_is_the_measure_of_all_voxels_together(name: str) -> None:
    data = cases()
    found = through_engine({"x": PooledMetric(name, NAMES)}, data)
    truth, prediction = (torch.cat([case[key] for case in data]).numpy() for key in ("label", "pred"))
    expected = [getattr(measure, name)(truth == value, prediction == value) for value in (1, 2)]
    assert [found["x_a"], found["x_b"]] == pytest.approx(expected)
    assert found["x"] == pytest.approx(np.mean(expected))
    alone = through_engine({"pooled": PooledMetric(name, NAMES), "case": CaseMetric(name, NAMES)}, data[:1])
    assert alone["pooled"] == pytest.approx(alone["case"])


def test_calibration_of_probabilities_and_of_logits() -> None:
    data = cases()
    truth, logits = (torch.stack([torch.as_tensor(case[key]) for case in data]) for key in ("label", "logits"))
    for activation, scores in (("softmax", logits.softmax(1)), ("sigmoid", logits.sigmoid())):
        theirs = [
            float(binary_calibration_error(scores[:, value].flatten(), (truth == value).long().flatten(), 15))
            for value in (1, 2)
        ]
        outputs = [{"pred": each, "label": case["label"]} for each, case in zip(scores, data, strict=True)]
        found = through_engine({"ece": CalibrationError(NAMES)}, outputs)
        assert [found["ece_a"], found["ece_b"]] == pytest.approx(theirs, abs=1e-6)
        metric = CalibrationError(NAMES, activation)
        metric.update((logits, truth))
        assert metric.compute() == pytest.approx(np.mean(theirs), abs=1e-6)
        without_background = CalibrationError(NAMES)
        without_background.update((scores[:, 1:], truth))
        assert without_background.compute() == pytest.approx(metric.compute())


def test_soft_dice_of_mindspore_in_a_metric() -> None:
    scores = torch.tensor([[0.2, 0.5], [0.3, 0.1], [0.9, 0.6]]).reshape(3, 1, 2, 1, 1)
    truth = torch.tensor([[0, 1], [1, 0], [0, 1]]).reshape(3, 1, 2, 1, 1)
    metric = SoftDice(["background", "yes"], squared=True, smooth=1e-5, smooth_above=0)
    for sample in range(3):
        metric.update((scores[sample : sample + 1], truth[sample : sample + 1]))
    assert metric.compute() / 3 == pytest.approx(0.20467791713802546, abs=1e-6)


@pytest.mark.parametrize("squared", [False, True])
def test_soft_dice_pooled_and_per_sample(squared: bool) -> None:
    data = cases()
    truth = np.concatenate([case["label"].numpy() for case in data])
    scores = torch.stack([case["logits"] for case in data]).softmax(1).numpy()
    outputs = [{"pred": case["logits"].softmax(0), "label": case["label"]} for case in data]
    metrics = {"pooled": SoftDice(NAMES, squared=squared), "sample": SoftDice(NAMES, squared=squared, per_sample=True)}
    found = through_engine(metrics, outputs)
    pairs = {label: (truth == value, scores[:, value]) for value, label in ((1, "a"), (2, "b"))}
    for label, pair in pairs.items():
        expected = measure.soft_dice(*pair, squared=squared)
        assert found[f"pooled_{label}"] == pytest.approx(expected, rel=1e-6)
        alone = measure.per_sample(measure.soft_dice, *pair, squared=squared)
        assert found[f"sample_{label}"] == pytest.approx(mean_defined(alone), rel=1e-6)
    assert found["pooled"] == pytest.approx((found["pooled_a"] + found["pooled_b"]) / 2)
    empty = SoftDice(NAMES)
    assert empty.compute() == 0


@pytest.mark.parametrize(
    ("prediction", "words"),
    [
        (torch.rand(3, 4, 4, 4), "not a label map"),
        (torch.rand(1, 4, 4, 4), "not a label map"),
        (torch.zeros(1, 4, 4, 5), "different shapes"),
        (torch.full((1, 4, 4, 4), torch.nan), "not a label map"),
    ],
)
def test_what_is_no_label_map_is_refused(prediction: torch.Tensor, words: str) -> None:
    for metric in (CaseDice(NAMES), PooledMetric("dice", NAMES)):
        with pytest.raises(UsageError, match=words):
            metric.update(([prediction], [torch.zeros(1, 4, 4, 4)]))


def test_words_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="no such measure") as caught:
        CaseMetric("hd95", NAMES)
    assert caught.value.hint == "did you mean 'hd95_mm'?"
    with pytest.raises(UsageError, match="no such measure") as caught:
        CaseMetric("ece", NAMES)
    assert "CalibrationError" in str(caught.value.hint)
    with pytest.raises(UsageError, match="no such measure"):
        PooledMetric("hd_mm", NAMES)
    with pytest.raises(UsageError, match="no such activation"):
        CalibrationError(NAMES, "relu")
    with pytest.raises(UsageError, match="needs labels"):
        CaseDice(["background"])
    with pytest.raises(UsageError, match="no probabilities") as caught:
        CalibrationError(NAMES).update((torch.full((1, 3, 2, 2, 2), 4.0), torch.zeros(1, 1, 2, 2, 2)))
    assert "activation" in str(caught.value.hint)
    with pytest.raises(UsageError, match="do not fit the labels"):
        SoftDice(NAMES).update((torch.zeros(1, 5, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2)))
    with pytest.raises(UsageError, match="different shapes"):
        SoftDice(NAMES).update((torch.zeros(1, 3, 2, 2, 3), torch.zeros(1, 1, 2, 2, 2)))


def test_a_config_names_them_for_a_monai_validator() -> None:
    data = cases(2)
    metric = {"_target_": "segpipe.components.CaseMetric", "labels": "@labels"}
    parser = ConfigParser(
        {
            "labels": NAMES,
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "device": "cpu",
                "val_data_loader": "@data",
                "network": {"_target_": "torch.nn.Identity"},
                "inferer": {"_target_": "SimpleInferer"},
                "postprocessing": {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                "key_val_metric": {"val_mean_dice": {"_target_": "segpipe.components.CaseDice", "labels": "@labels"}},
                "additional_metrics": {
                    "hd95": {**metric, "measure": "hd95_mm"},
                    "pooled_recall": {
                        "_target_": "segpipe.components.PooledMetric",
                        "measure": "recall",
                        "labels": "@labels",
                    },
                    "ece": {
                        "_target_": "segpipe.components.CalibrationError",
                        "labels": "@labels",
                        "activation": "softmax",
                    },
                },
            },
            "data": DataLoader([{"image": case["logits"], "label": case["label"]} for case in data]),
        }
    )
    evaluator = parser.get_parsed_content("evaluator")
    evaluator.run()
    found = evaluator.state.metrics
    metrics = {"hd95": CaseMetric("hd95_mm", NAMES), "pooled_recall": PooledMetric("recall", NAMES)}
    expected = through_engine(
        metrics, [{"pred": case["logits"].argmax(0, keepdim=True), "label": case["label"]} for case in data]
    )
    outputs = [{"pred": case["logits"].softmax(0), "label": case["label"]} for case in data]
    expected |= through_engine({"ece": CalibrationError(NAMES)}, outputs)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert 0 < found["val_mean_dice"] < 1


def _metrics() -> dict:
    return {
        "dice": PooledMetric("dice", NAMES),
        "hd95": CaseMetric("hd95_mm", NAMES),
        "mean": CaseDice(NAMES),
        "ece": CalibrationError(NAMES, "softmax"),
        "soft": SoftDice(NAMES, "softmax", squared=True),
        "soft_sample": SoftDice(NAMES, "softmax", per_sample=True),
    }


def _feed(metrics: dict, data: list) -> dict:
    for name, metric in metrics.items():
        scores = "logits" if name in ("ece", "soft", "soft_sample") else "pred"
        metric.update(([case[scores] for case in data], [case["label"] for case in data]))
    return {name: (metric.compute(), metric.by_label) for name, metric in metrics.items()}


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    share = cases(5)[:1] if rank == 0 else cases(5)[1:]  # unequal shares
    torch.save(_feed(_metrics(), share), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    mp.spawn(_process, (str(tmp_path),), nprocs=2)
    expected = _feed(_metrics(), cases(5))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        for name, (number, by_label) in expected.items():
            assert found[name][0] == number, name
            assert found[name][1] == by_label, name


@pytest.mark.slow
def test_training_writes_them_into_its_history(tiny_manifest: Path, tmp_path: Path) -> None:
    more = {
        "hd95": {"_target_": "segpipe.components.CaseMetric", "measure": "hd95_mm", "labels": "@labels"},
        "ece": {"_target_": "segpipe.components.CalibrationError", "labels": "@labels", "activation": "@activation"},
    }
    option = f"validate#evaluator#additional_metrics={json.dumps(more)}"
    assert run(train_arguments(tiny_manifest, tmp_path, "--epochs", "1", "--set", option)) == 0
    with (tmp_path / "history.csv").open() as stream:
        row = next(csv.DictReader(stream))
    assert 0 < float(row["ece"]) < 1 and 0 < float(row["ece_liver"]) < 1
    assert float(row.get("hd95") or 1) > 0
