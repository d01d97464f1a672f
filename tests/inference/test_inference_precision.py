"""bfloat16 is used where it is asked for, or proven and fast; networks compute in it, and scores are float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from segpipe.errors import UsageError
from segpipe.inference import ModelOptions
from segpipe.inference import precision as precision_module
from segpipe.inference.openvino_runtime import openvino_runtime
from segpipe.inference.precision import ChosenPrecision, bfloat16_faults, bfloat16_note, precision_for, why_unproven
from segpipe.inference.runtimes import choose_runtime, torch_runtime
from segpipe.inference.weights import Model

BFLOAT16 = ChosenPrecision("bfloat16", "asked for")
PROOF: dict[str, Any] = {
    "cases": 31,
    "runtime": ["torch"],
    "mirror": [],
    "mean_dice_lost": 0.001,
    "case_dice_lost": 0.01,
    "labels_lost": 0,
    "volume_changed": 0.01,
}
PROVEN = [{"precision": PROOF}]


@pytest.fixture
def amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_module, "cpu_kind", lambda: "amx")


@pytest.mark.usefixtures("amx")
def test_auto_takes_bfloat16_where_it_is_proven_and_fast() -> None:
    assert precision_for("auto", "cpu", PROVEN)("torch").name == "bfloat16"
    for metadata, runtime, mirror, why in (
        ([{}], "torch", (), "no proof"),
        ([{"precision": "yes"}], "torch", (), "no proof"),
        (PROVEN * 2, "torch", (), "one bundle at a time"),
        (PROVEN, "openvino", (), "not of the runtime openvino"),
        (PROVEN, "torch", ("x",), "other mirrored axes"),
        ([{"precision": {**PROOF, "labels_lost": 1}}], "torch", (), "1 labels of cases are lost"),
    ):
        chosen = precision_for("auto", "cpu", metadata, mirror)(runtime)
        assert chosen.name == "float32" and why in chosen.reason, metadata
    assert precision_for("float32", "cpu", PROVEN)("torch") == ChosenPrecision("float32", "asked for")


@pytest.mark.parametrize("kind", ["avx512_bf16", "neither"])
def test_auto_stays_with_float32_where_bfloat16_is_not_fast(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(precision_module, "cpu_kind", lambda: kind)
    chosen = precision_for("auto", "cpu", PROVEN)("torch")
    assert chosen.name == "float32" and "no AMX" in chosen.reason


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_is_asked_whether_it_has_bfloat16(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    asked: list[bool] = []

    def has(*, including_emulation: bool) -> bool:
        asked.append(including_emulation)
        return native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", has)
    assert precision_for("auto", "cuda", PROVEN)("torch").name == ("bfloat16" if native else "float32")
    assert asked == [False]


def test_asked_for_by_name_it_is_taken_and_noted_where_it_is_unproven() -> None:
    assert "not proven" in precision_for("bfloat16", "cpu", [{}])("torch").reason
    assert precision_for("bfloat16", "cpu", PROVEN)("torch") == ChosenPrecision(
        "bfloat16", "asked for, and proven for this bundle"
    )
    (note,) = bfloat16_note("bfloat16", [{}], "torch", ())
    assert note.startswith("computed in bfloat16, which is unproven here: the bundle has no proof that bfloat16")
    assert bfloat16_note("bfloat16", PROVEN, "torch", ()) == bfloat16_note("auto", [{}], "torch", ()) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"mean_dice_lost": 0.0011}, "mean Dice is 0.0011 lower"),
        ({"case_dice_lost": 0.0101}, "case and label is 0.0101 lower"),
        ({"labels_lost": 2}, "2 labels"),
        ({"volume_changed": 0.011}, "1.1% another"),
        ({"volume_changed": float("nan")}, "volume"),
        ({"volume_changed": None}, "has no volume_changed"),
        ({"labels_lost": False}, "has no labels_lost"),
        ({"cases": 0}, "on no case"),
        ({"cases": "31"}, "on no case"),
    ],
)
def test_each_limit_is_a_limit(changed: dict[str, Any], words: str) -> None:
    assert bfloat16_faults(PROOF) == []
    (fault,) = bfloat16_faults({**PROOF, **changed})
    assert words in fault
    assert fault in why_unproven([{"precision": {**PROOF, **changed}}], "torch")


class Watched(torch.nn.Module):
    """A small network that remembers the order of its windows and the type of what its convolution gave."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Conv3d(2, 8, 3, padding=1), torch.nn.Conv3d(8, 3, 1))
        self.seen: list[tuple[torch.dtype, bool]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Watched:
        other = Watched()
        other.seen = self.seen
        return other

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        inside = self.layers[0](windows)
        self.seen.append((inside.dtype, windows.is_contiguous(memory_format=torch.channels_last_3d)))
        out: torch.Tensor = self.layers[1](inside)
        return out


@torch.inference_mode()
def test_the_network_computes_in_bfloat16_and_its_scores_are_float32() -> None:
    network, windows = Watched().eval(), torch.randn(2, 2, 8, 8, 8)
    plain = torch_runtime(network)(windows)
    scores = torch_runtime(network, BFLOAT16)(windows)
    assert network.seen == [(torch.float32, False), (torch.bfloat16, True)]
    assert plain.dtype == scores.dtype == torch.float32 and scores.is_contiguous()
    assert not torch.equal(plain, scores)
    torch.testing.assert_close(scores, plain, atol=0.03, rtol=0.03)
    assert all(value.dtype == torch.float32 for value in network.parameters())


@torch.inference_mode()
def test_a_list_of_one_output_is_taken_in_bfloat16_too() -> None:
    class Listed(Watched):
        def forward(self, windows: torch.Tensor) -> Any:
            return [super().forward(windows)]

        def __deepcopy__(self, memo: dict[int, Any]) -> Listed:
            return self

    assert torch_runtime(Listed().eval(), BFLOAT16)(torch.randn(1, 2, 4, 4, 4)).dtype == torch.float32


@torch.inference_mode()
def test_the_chosen_runtime_says_in_what_it_computes() -> None:
    network, windows = Watched().eval(), torch.randn(1, 2, 8, 8, 8)
    asked: list[str] = []

    def choose(runtime: str) -> ChosenPrecision:
        asked.append(runtime)
        return BFLOAT16

    model = Model(network, "model.pt", "{}")
    chosen = choose_runtime("torch", [model], torch.device("cpu"), (2, 8, 8, 8), precision=choose)
    assert chosen.precision == BFLOAT16 and asked == ["torch"]
    chosen.run(windows)
    assert network.seen[-1][0] == torch.bfloat16
    assert choose_runtime("torch", [model], torch.device("cpu"), (2, 8, 8, 8)).precision.name == "float32"


@torch.inference_mode()
def test_openvino_is_found_right_in_float32_and_computes_in_what_is_asked(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    network, windows = torch.nn.Conv3d(1, 3, 3, padding=1).eval(), torch.randn(2, 1, 16, 16, 16)
    weights = tmp_path / "model.pt"
    torch.save(network.state_dict(), weights)
    model = Model(network, str(weights), "{}", "a" * 64)
    plain = openvino_runtime(torch_runtime(network), model, (1, 16, 16, 16), 1)(windows).clone()
    torch.testing.assert_close(plain, network(windows), atol=1e-5, rtol=1e-4)
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        scores = openvino_runtime(torch_runtime(network), model, (1, 16, 16, 16), 1, BFLOAT16)(windows)
        assert scores.dtype == torch.float32 and not torch.equal(scores, plain)
        torch.testing.assert_close(scores, plain, atol=0.03, rtol=0.03)
    else:
        with pytest.raises(Exception, match="no bfloat16"):
            openvino_runtime(torch_runtime(network), model, (1, 16, 16, 16), 1, BFLOAT16)


def test_there_is_no_other_precision() -> None:
    with pytest.raises(UsageError, match="no such precision"):
        ModelOptions.parse(precision="float16")
