"""What an admitted name may be given: every parameter of every listed name is judged, dangerous values are refused."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_bundle import change_json, small_bundle

from segpipe.bundle.open import open_bundle
from segpipe.bundle.verify import verify_bundle
from segpipe.bundle.vet.arguments import ANYWHERE, HANDED_ON, ONE_OF, PARAMETERS, is_of_values_alone, short_name
from segpipe.bundle.vet.configs import vet_config, vet_expression
from segpipe.bundle.vet.documents import write_sums
from segpipe.bundle.vet.gate import TrustPolicy, vet_opened
from segpipe.bundle.vet.names import Names, _listed, signature_of
from segpipe.bundle.vet.syntax import as_evaluated, as_read
from segpipe.bundle.vet.values import Arguments, is_free, kind_for
from segpipe.cli.app import run
from segpipe.errors import REFUSED, RefusedError
from segpipe.inference import ModelOptions


def parameters() -> Iterator[tuple[str, inspect.Parameter]]:
    """Each parameter of the listed names whose arguments are judged one by one."""
    for listed in sorted(set(_listed().values())):
        signature = None if is_of_values_alone(listed) else signature_of(listed)
        yield from ((listed, each) for each in (signature.parameters.values() if signature else ()))


def test_somebody_judged_every_parameter_of_every_listed_name() -> None:
    unjudged = {
        f"{listed}: {each}"
        for listed, each in parameters()
        if (each.kind is each.VAR_KEYWORD and short_name(listed) not in HANDED_ON)
        or (each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL) and kind_for(listed, each.name) is None)
    }
    assert unjudged == set()
    assert all(signature_of(listed) or is_of_values_alone(listed) for listed in _listed().values())


def test_nothing_is_judged_that_no_listed_name_takes() -> None:
    taken = {each.name for _, each in parameters()} | {name for names in HANDED_ON.values() for name in names.split()}
    judged = [name for names in PARAMETERS.values() for name in names.split()]
    assert len(judged) == len(set(judged)) and not set(judged) & set(ONE_OF)
    assert {*judged, *ONE_OF} - taken <= set(ANYWHERE)
    assert set(HANDED_ON) <= {short_name(listed) for listed, _ in parameters()}


def test_what_may_be_called_by_others_takes_no_path_and_no_code() -> None:
    bound = {short_name(listed) for listed in _listed().values() if not is_free(listed)}
    assert {"SaveImaged", "LoadImage", "CheckpointSaver", "SupervisedEvaluator", "FileLister", "DataLoader"} <= bound
    assert not {"UNet", "len", "list_data_collate", "Flipd", "ReLU", "SGD", "where"} & bound


def found(config: Any, allow: tuple[str, ...] = ()) -> set[tuple[str, str | None]]:
    """Place of what is refused, with the name that admits it."""
    uses = vet_config(config, "x.json", Names(allow))
    return {(each.place, each.name) for use in uses for each in use.findings}


def component(target: str, **given: Any) -> dict[str, Any]:
    return {"a": {"_target_": target, **given}, "output_dir": "eval", "net": {"_target_": "UNet"}}


HOME = "/home/somebody"
SAVE = {"save_dict": {"model": "@net"}}
REFUSED_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    # programs and code
    (component("SupervisedEvaluator", compile=True), "compile"),
    (component("SupervisedTrainer", compile="@flag", flag=True), "compile"),
    (component("SupervisedEvaluator", compile_kwargs={"backend": "inductor"}), "compile_kwargs"),
    (component("SupervisedEvaluator", prepare_batch="$monai.utils.ensure_tuple"), "prepare_batch"),
    (component("EnsembleEvaluator", iteration_update="@net"), "iteration_update"),
    (component("SupervisedTrainer", metric_cmp_fn="$max"), "metric_cmp_fn"),
    (component("SupervisedEvaluator", event_to_attr={"a": "b"}), "event_to_attr"),
    (component("DataLoader", dataset="@net", worker_init_fn="$len"), "worker_init_fn"),
    (component("torch.utils.data.DataLoader", multiprocessing_context="spawn"), "multiprocessing_context"),
    (component("CacheDataset", data=[], hash_func="$len"), "hash_func"),
    (component("StatsHandler", epoch_print_logger="@net"), "epoch_print_logger"),
    (component("StatsHandler", key_var_format="{0.__class__}"), "key_var_format"),
    (component("TensorBoardStatsHandler", log_dir="@output_dir", epoch_event_writer="@net"), "epoch_event_writer"),
    (component("set_determinism", additional_settings="@net"), "additional_settings"),
    (component("SaveImaged", keys="pred", output_dir="@output_dir", folder_layout="@net"), "folder_layout"),
    (component("SaveImage", output_dir="@output_dir", output_name_formatter="@net"), "output_name_formatter"),
    (component("Compose", transforms=[], unpack_items=True), "unpack_items"),
    (component("Compose", transforms=[], log_stats="root"), "log_stats"),
    (component("BorderPadd", keys="image", spatial_border=1, mode="$monai.utils.ensure_tuple"), "mode"),
    (component("UNet", act={"_target_": "torch.nn.ReLU", "_mode_": "callable"}), "act"),
    # paths to write
    (component("CheckpointSaver", save_dir=HOME, **SAVE), "save_dir"),
    (component("CheckpointSaver", save_dir="@place", place=HOME, **SAVE), "save_dir"),
    (component("CheckpointSaver", save_dir="$@bundle_root + '/models'", **SAVE), "save_dir"),
    (component("CheckpointSaver", save_dir="@dataset_dir", **SAVE), "save_dir"),
    (component("CheckpointSaver", save_dir="eval", **SAVE), "save_dir"),
    (component("CheckpointSaver", save_dir="@output_dir", final_filename="../x.pt", **SAVE), "final_filename"),
    (component("CheckpointSaver", save_dir="@run_dir", key_metric_filename="/x", **SAVE), "key_metric_filename"),
    (component("CheckpointSaver", save_dir="@output_dir", file_prefix="a/b", **SAVE), "file_prefix"),
    (component("CheckpointSaver", save_dir="@output_dir", key_metric_name="$'/' + 'x'", **SAVE), "key_metric_name"),
    (component("CheckpointSaver", save_dir="@output_dir", save_dict={"../../x": "@net"}), "save_dict"),
    (component("CheckpointSaver", save_dir="@output_dir", save_dict="$dict([['/x', @net]])"), "save_dict"),
    (component("SupervisedEvaluator", additional_metrics={"/home/x": {"_target_": "MeanDice"}}), "additional_metrics"),
    (component("SupervisedEvaluator", key_val_metric="$@metrics", metrics={"..": 1}), "key_val_metric"),
    (component("MetricsSaver", save_dir="$@output_dir + '/../../x'"), "save_dir"),
    (component("MetricsSaver", save_dir="$@output_dir + 'x'"), "save_dir"),
    (component("MetricsSaver", save_dir="$'%s/x' % @output_dir"), "save_dir"),
    (component("MetricsSaver", save_dir="$str(@output_dir)"), "save_dir"),
    (component("MetricsSaver", save_dir="$@output_dir if @a else '/home'"), "save_dir"),
    (component("MetricsSaver", save_dir="@#place"), "save_dir"),
    (component("SaveImaged", keys="pred", output_dir=f"{HOME}/x"), "output_dir"),
    (component("SaveImaged", keys="pred"), "output_dir"),
    (component("SaveImaged", keys="pred", output_dir="@output_dir", output_postfix="../../x"), "output_postfix"),
    (component("SaveImaged", keys="pred", output_dir="@output_dir", output_postfix="@p", p="/x"), "output_postfix"),
    (component("SaveImaged", keys="pred", output_dir="@output_dir", output_ext="/../x.nii"), "output_ext"),
    (component("SaveImaged", keys="pred", output_dir="@output_dir", data_root_dir="@bundle_root"), "data_root_dir"),
    (component("SaveImageDict", keys="pred", output_dir="/"), "output_dir"),
    (component("TensorBoardStatsHandler", log_dir="s3://bucket/x"), "log_dir"),
    (component("TensorBoardStatsHandler"), "log_dir"),
    (component("TensorBoardStatsHandler", log_dir=None), "log_dir"),
    (component("TensorBoardImageHandler", log_dir="~/x"), "log_dir"),
    (component("segpipe.components.RunLog", run_dir=HOME), "run_dir"),
    (component("segpipe.components.FastPrediction", output_dir=f"$'{HOME}'"), "output_dir"),
    (component("segpipe.components.prepared_cases", data=[], transform="@net", store=HOME), "store"),
    (component("segpipe.components.prepared_cases", data=[], transform="@net", store="@p", p="store"), "store"),
    (component("segpipe.components.prepared_cases", data=[], transform="@net", store="@dataset_dir"), "store"),
    (component("segpipe.components.prepared_cases", data=[], transform="@net", store=False), "store"),
    # paths to read
    (component("CheckpointLoader", load_path=f"{HOME}/x.pt", load_dict={}), "load_path"),
    (component("CheckpointLoader", load_path="$@bundle_root + '/../x.pt'", load_dict={}), "load_path"),
    (component("CheckpointLoader", load_path="@p", p={"_target_": "str", "object": "/x"}, load_dict={}), "load_path"),
    (component("torch.utils.data.datapipes.iter.FileLister", root="/"), "root"),
    (component("torch.utils.data.datapipes.iter.FileLister", root=["data", "/"]), "root"),
    (component("monai.data.load_decathlon_datalist", data_list_file_path="/etc/x.json"), "data_list_file_path"),
    (component("segpipe.components.load_cases", manifest="@manifest", data="/home"), "data"),
    (component("segpipe.components.FastPrediction", output_dir="@output_dir", weights="/x"), "weights"),
    (component("segpipe.components.pretrained_network", network="@net", weights="/x"), "weights"),
    # what nobody judged
    (component("UNet", unheard_of=1), "unheard_of"),
    (component("segpipe.components.in_precision", network="@net", compiled=True), "compiled"),
    (component("segpipe.components.in_precision", network="@net", compiled="@flag", flag=False), "compiled"),
    (component("LoadImaged", keys="image", converter="$len"), "converter"),
    (component("DataLoader", dataset="@net", unheard_of=1), "unheard_of"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "parameter"), REFUSED_ARGUMENTS, ids=lambda value: str(value)[:60])
def test_arguments_that_are_refused_and_what_admits_them(config: dict[str, Any], parameter: str) -> None:
    others = {key: value for key, value in config["a"].items() if key in ("place", "p", "flag", "metrics")}
    config = {**others, **config, "a": {key: value for key, value in config["a"].items() if key not in others}}
    ((place, name),) = found(config)
    assert place == f"a::{parameter}" and name is not None and name.endswith(f".{parameter}")
    assert found(config, (name,)) == set()
    assert found(config, (f"{name}x", parameter[:-1])) != set()


REFUSED_CALLS = [
    f"$monai.handlers.CheckpointSaver('{HOME}', {{'a': @net}})",
    "$monai.handlers.CheckpointSaver(@output_dir, {'a': @net}, final_filename='../x')",
    "$monai.handlers.CheckpointSaver(@output_dir, {'a': @net}, None, '/x')",
    "$monai.handlers.CheckpointSaver(*@a)",
    "$monai.handlers.MetricsSaver(save_dir='/x')",
    "$monai.transforms.SaveImage(@output_dir)",
    "$monai.transforms.LoadImage(None, True, torch.float32, True, True, '', '.', True, '/x')",
    "$monai.engines.SupervisedEvaluator(@device, @loader, @net, compile=True)",
    "$monai.handlers.TensorBoardStatsHandler()",
    "$monai.handlers.CheckpointLoader(@p, {'model': @net})",
    "$monai.handlers.CheckpointLoader('/x', {'model': @net})",
    "$torch.utils.data.datapipes.iter.FileLister('/')",
    "$torch.utils.data.DataLoader(@data, 1, False, None, None, 0, None, False, False, 0, @net)",
    "$monai.networks.nets.UNet(3, 1, 2, (4, 8), (2,), unheard_of=1)",
    "$[monai.handlers.CheckpointSaver]",
    "$sorted(@files, key=monai.handlers.CheckpointSaver)",
    "$monai.transforms.Compose(monai.transforms.SaveImage)",
    "$@thing.to(compile=True)",
    "$monai.handlers.CheckpointLoader(f'{@bundle_root!r}/x', {'model': @net})",
]


@pytest.mark.parametrize("text", REFUSED_CALLS)
def test_calls_that_are_refused(text: str) -> None:
    assert vet_expression(text, ("x",), Names(), Arguments(Names(), {"p": HOME}))[1] != []


ADMITTED: list[dict[str, Any]] = [
    component("SupervisedEvaluator", compile=False, compile_kwargs=None, amp=True, amp_kwargs={"enabled": True}),
    component("SupervisedEvaluator", key_val_metric={"val_mean_dice": {"_target_": "MeanDice"}}, val_handlers="@net"),
    component("CheckpointSaver", save_dir="@output_dir", final_filename="last.pt", **SAVE),
    component("CheckpointSaver", save_dir="$@output_dir + '/a/b'", key_metric_filename="best.pt", **SAVE),
    component("MetricsSaver", save_dir='$f"{@run_dir}/metrics"', metrics=["a"], output_type="csv"),
    component("SaveImaged", output_dir="@output_dir", output_postfix="", output_ext=".nii.gz", writer=None),
    component("CheckpointLoader", load_path="$@bundle_root + '/models/' + @name", load_dict={"model": "@net"}),
    component("CheckpointLoader", load_path="$@bundle_root+'/models/model.pt'", map_location="$torch.device('cpu')"),
    component("torch.utils.data.datapipes.iter.FileLister", root="@dataset_dir", masks=["*.nii"]),
    component("DataLoader", dataset="@net", collate_fn="$monai.data.list_data_collate", num_workers=0),
    component("LoadImaged", keys="image", reader="NibabelReader", as_closest_canonical=True),
    component("CropForegroundd", keys="image", source_key="image", constant_values=-1),
    component("EnsureTyped", keys="image", dtype="$torch.float16"),
    component("MeanDice", output_transform="$monai.handlers.from_engine(['pred', 'label'])"),
    component("segpipe.components.in_precision", network="@net", precision="@p", channels_last=True, compiled=False),
    component("segpipe.components.BatchMirror", axes=[0, 1], prob=0.5),
    component("segpipe.components.prepared_cases", data=[], transform="@net", store="@store"),
    component("segpipe.components.prepared_cases", data=[], transform="@net", store="$@run_dir + '/store'"),
    component("UNet", act=["leakyrelu", {"inplace": True}], norm="batch"),
    component("Activationsd", keys="pred", other="$torch.sigmoid"),
    component("torch.nn.Module.to", self="@net", device="$torch.device('cpu')"),
]  # fmt: skip


@pytest.mark.parametrize("config", ADMITTED, ids=lambda value: str(value)[:60])
def test_arguments_that_bundles_usually_give_are_admitted(config: dict[str, Any]) -> None:
    assert found({"name": "model_final.pt", **config}) == set()


@pytest.mark.parametrize(
    "value", [HOME, "../x", "~/x", "s3://x", "$'/' + 'home'", "@dataset_dir", "$@bundle_root + '/../x'"]
)
def test_the_folders_of_results_are_below_where_a_bundle_runs(value: str) -> None:
    for id in ("output_dir", "run_dir", "store"):
        assert found({id: value}) == {(id, id)}
        assert found({f"+{id}": value}) >= {(id, id)}
        assert found({id: value}, (id,)) == set()
        assert found({id: "$@bundle_root + '/eval'"}) == found({id: "eval"}) == found({id: "@bundle_root"}) == set()
    assert found({"store": None}) == set() and found({"run_dir": None}) == {("run_dir", "run_dir")}


MERGED: list[tuple[dict[str, Any], str]] = [
    ({"s": {"_target_": "CheckpointSaver", "save_dir": "@output_dir"}, "s::save_dir": HOME}, "s::save_dir"),
    ({"s": [{"_target_": "MetricsSaver", "save_dir": "@output_dir"}], "s#0#save_dir": HOME}, "s::0::save_dir"),
    ({"s": {"_target_": "MetricsSaver", "save_dir": "@output_dir"}, "+s": {"save_dir": HOME}}, "s::save_dir"),
    ({"evaluator::compile_kwargs": {"mode": "x"}}, "evaluator::compile_kwargs"),  # of another file's evaluator
    ({"+saver": {"save_dir": HOME}}, "saver::save_dir"),
    ({"s": [{"_target_": "MetricsSaver", "save_dir": "@output_dir"}], "s::-1::save_dir": HOME}, "s::-1::save_dir"),
    ({"s": {"_target_": "MetricsSaver", "save_dir": "@output_dir"}, "s ::save_dir": HOME}, "s ::save_dir"),
    ({"+s ": {"save_dir": HOME}}, "+s "),
    ({"a": {"dir": "@output_dir", "x": "$monai.handlers.MetricsSaver(@#dir)"}, "b": "%a::x"}, "a::x"),
]


@pytest.mark.parametrize(("config", "place"), MERGED, ids=lambda value: str(value)[:60])
def test_arguments_that_are_put_together_from_several_keys(config: dict[str, Any], place: str) -> None:
    assert place in {place for place, _ in found(config)}


KEYS = st.lists(st.sampled_from(["a", "b", "a::b", "a#c", "b::0", "+a", "+b", "a::b::c", "+a::b"]), unique=True)
VALUES = st.sampled_from([1, "x", {"c": 2}, {"b": {"c": 3}, "d": 4}, [5, {"b": 6}], [7]])


@given(st.dictionaries(st.sampled_from(["a", "b"]), VALUES), KEYS, st.lists(VALUES, min_size=9, max_size=9))
@settings(deadline=None, max_examples=200)
@pytest.mark.filterwarnings("ignore:Can't merge entry")
def test_a_config_is_judged_as_monai_reads_it(first: dict[str, Any], keys: list[str], values: list[Any]) -> None:
    from monai.bundle import ConfigParser
    from monai.bundle.utils import merge_kv

    second = {key: value for key, value in zip(keys, values, strict=False) if key not in first}
    document = json.loads(json.dumps({**first, **second}))
    parser = ConfigParser(config={})
    try:
        for key, value in json.loads(json.dumps(document)).items():
            merge_kv(parser, key, value)
    except (KeyError, ValueError, TypeError, IndexError):  # MONAI reads nothing of such a config
        return
    read, odd = as_read(document)
    assert odd or read == parser.get()


PARTS = st.sampled_from(["'/a'", "'..'", "'b/'", "@output_dir", "@p", 'f"{@p}/c"', "'~'", "''"])


@given(st.lists(PARTS, min_size=1, max_size=4))
@settings(deadline=None, max_examples=150)
def test_the_path_that_is_judged_is_the_path_that_is_evaluated(parts: list[str]) -> None:
    text = "$" + " + ".join(parts)
    document = {"p": "/q/../r"}
    judged = Arguments(Names(), document)._text(text)
    evaluated = eval(as_evaluated(text), {"__local_refs": {"p": document["p"], "output_dir": "<OUT>"}})
    if judged is not None:
        assert f"{'<OUT>' if judged.place else ''}{judged.tail}" == evaluated
    else:
        assert "<OUT>" in evaluated
    if found({**component("MetricsSaver", save_dir=text), **document}) == set():
        assert ".." not in evaluated.split("/")
        assert evaluated == "<OUT>" or evaluated.startswith("<OUT>/")


def test_references_without_end_are_no_path() -> None:
    doubling = {f"p{level}": f"$@p{level + 1} + @p{level + 1}" for level in range(40)}
    chain = {f"p{level}": f"@p{level + 1}" for level in range(5000)}
    for config in ({"p": "@p"}, {"p": "@q", "q": "$@p + 'x'"}, {"p": "@p0", **doubling}, {"p": "@p0", **chain}):
        saver = component("MetricsSaver", save_dir="@p")
        assert found({**saver, **config}) >= {("a::save_dir", "MetricsSaver.save_dir")}


def test_the_work_grows_with_the_config_and_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    opened = Arguments._opened
    monkeypatch.setattr(Arguments, "_opened", lambda *given: (steps.append(1), opened(*given))[1])

    def work(count: int) -> int:
        steps.clear()
        doubling = {f"p{level}": f"$@p{level + 1} + @p{level + 1}" for level in range(count)}
        savers = [{"_target_": "MetricsSaver", "save_dir": f"@p{level}"} for level in range(count)]
        calls = [f"$monai.handlers.MetricsSaver(@p{level})" for level in range(count)]
        found({**doubling, "savers": savers, "calls": calls})
        return len(steps)

    assert work(200) < 2.5 * work(100)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("sample", "admitted_by"),
    [
        ("bundle_runs_program", {"SupervisedEvaluator.compile", "SupervisedEvaluator.compile_kwargs"}),
        ("bundle_overwrites_any_file", {"CheckpointSaver.save_dir"}),
    ],
)
def test_bundles_that_passed_and_ran_programs_or_wrote_files(sample: str, admitted_by: set[str]) -> None:
    root = Path(os.environ["SEGPIPE_DATA"]) / "field/bundles" / sample
    if not root.is_dir():
        pytest.skip("no such input there")
    assert {each.name for each in verify_bundle(root).findings} >= admitted_by
    assert run(["bundle", "verify", str(root)]) == REFUSED
    with pytest.raises(RefusedError):  # as the worker of `predict` does, before it builds anything
        vet_opened(open_bundle(root).recipe(ModelOptions()).bundles, TrustPolicy())


def test_a_bundle_with_such_a_handler_is_refused_and_predicts_when_it_writes_to_its_results(tmp_path: Path) -> None:
    root = small_bundle(tmp_path / "b")
    saver = {"_target_": "CheckpointSaver", "save_dir": HOME, "save_dict": {"model": "@network"}, "save_final": True}
    change_json(root / "configs/inference.json", lambda config: config.update(saver=saver))
    write_sums(root)
    (refused,) = verify_bundle(root).findings
    assert (refused.place, refused.name) == ("saver::save_dir", "CheckpointSaver.save_dir")
    change_json(root / "configs/inference.json", lambda config: config["saver"].update(save_dir="@output_dir"))
    write_sums(root)
    assert verify_bundle(root).findings == []
