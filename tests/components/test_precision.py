"""In which type a network computes: weights, logits and names stay as they were. No test asks what the CPU can do."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import UNet

from segpipe.common import precision, provenance
from segpipe.common.precision import precision_of
from segpipe.components import UNetPlusPlus, in_precision, scales_loss
from segpipe.errors import UsageError


def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=[4, 8], strides=[2], num_res_units=1)


def seen_inside(network: torch.nn.Module, x: torch.Tensor) -> set[torch.dtype]:
    """The types of what the convolutions of a network give."""
    found: set[torch.dtype] = set()
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: found.add(output.dtype))
        for module in network.modules()
        if isinstance(module, torch.nn.Conv3d)
    ]
    network(x)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(("word", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_network_computes_in_its_type_and_gives_float32(word, dtype, channels_last) -> None:
    network = unet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    made = in_precision(network, word, channels_last)
    assert made is network and isinstance(made, UNet)
    x = torch.randn(2, 1, 8, 8, 8)
    assert seen_inside(made, x) == {dtype}
    scores = made(MetaTensor(x))
    assert scores.dtype == torch.float32 and not isinstance(scores, MetaTensor)
    after = made.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert all(value.dtype == torch.float32 for value in after.values())
    scores.sum().backward()
    assert {parameter.grad.dtype for parameter in made.parameters()} == {torch.float32}


def test_float32_is_what_the_network_alone_gives_bit_for_bit() -> None:
    x = torch.randn(1, 1, 8, 8, 8)
    assert torch.equal(unet()(x), in_precision(unet(), "float32")(x))


def test_bfloat16_is_near_float32_and_not_equal() -> None:
    x = torch.randn(1, 1, 8, 8, 8)
    exact, near = unet()(x), in_precision(unet(), "bfloat16", True)(x)
    assert not torch.equal(exact, near)
    assert (exact - near).abs().max().item() < 0.05 * exact.abs().max().item()


class OneConvolution(torch.nn.Module):
    def __init__(self, dims: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = (torch.nn.Conv2d if dims == 2 else torch.nn.Conv3d)(8, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolution(x)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 8, 8), (8, 2, 8), (8, 8, 1), (1, 1, 1), (2, 2), (1, 8)])
def test_an_axis_shorter_than_the_kernel_is_computed_in_float32(shape: tuple[int, ...], channels_last: bool) -> None:
    """In bfloat16 some CPUs give gradients of such weights that hold what lay in memory before."""
    x, gradients = torch.randn(2, 8, *shape), []
    for word in ("float32", "bfloat16", "bfloat16"):
        network = in_precision(OneConvolution(len(shape)), word, channels_last)
        spoilt = [torch.full((size,), float("nan")) for size in (64, 1000, 5000, 20000) for _ in range(4)]
        del spoilt
        scores = network(x)
        (scores * torch.linspace(-1, 1, scores.numel()).reshape(scores.shape)).sum().backward()
        gradients.append(network.convolution.weight.grad)
    assert torch.equal(gradients[1], gradients[2])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-5)


EPS = torch.finfo(torch.bfloat16).eps


class Normalised(torch.nn.Module):
    def __init__(self, dims: int, affine: bool) -> None:
        super().__init__()
        kind = torch.nn.InstanceNorm2d if dims == 2 else torch.nn.InstanceNorm3d
        self.norm = kind(16, affine=affine)
        if affine:
            torch.nn.init.uniform_(self.norm.weight, 0.5, 2)
            torch.nn.init.uniform_(self.norm.bias, -1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.bfloat16())


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [(6, 7, 8), (5, 1, 4), (9, 11), (40, 56, 44)])
def test_instance_normalisation_of_channels_side_by_side_errs_no_more_than_that_of_pytorch(
    shape: tuple[int, ...], affine: bool
) -> None:
    torch.manual_seed(len(shape))
    plain, exact = Normalised(len(shape), affine), Normalised(len(shape), affine).double()
    ours = in_precision(copy.deepcopy(plain), "bfloat16", True)
    exact.load_state_dict(plain.state_dict())
    x = (torch.randn(3, 16, *shape) * 3 + 5).bfloat16()
    weights = torch.randn(x.shape)
    found = []
    for module, given in ((exact.norm, x.double()), (plain.norm, x.clone()), (ours.norm, x.clone())):
        given = given.contiguous(memory_format=torch.channels_last if len(shape) == 2 else torch.channels_last_3d)
        given.requires_grad_()
        (module(given) * weights).sum().backward()
        found.append([module(given).detach(), given.grad, *(part.grad for part in module.parameters())])
    for right, theirs, near in zip(*found, strict=True):  # what it gives, and gradients
        assert near.dtype == theirs.dtype
        assert (near - right).norm() <= max(1.5 * (theirs - right).norm(), EPS * right.norm() / 2)


class Standardised(torch.nn.Conv3d):
    """A convolution whose kernels are brought to mean 0, with a forward pass of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3, 4), keepdim=True)
        return torch.nn.functional.conv3d(x, weight, self.bias, self.stride, self.padding)


class Scaled(torch.nn.InstanceNorm3d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(x)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (Standardised(2, 3, 3, padding=1), (1, 2, 2, 2, 2)),
        (Scaled(16), (1, 16, 4, 4, 4)),
        (torch.nn.InstanceNorm3d(4), (4, 16, 5, 6)),  # a single image without a batch
        (torch.nn.Conv3d(2, 3, 3, padding=1), (2, 2, 9, 9)),
    ],
)
def test_what_a_module_computes_is_its_own(module: torch.nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape).bfloat16() + 5
    expected = copy.deepcopy(module).float()(x.float()).detach()
    (made,) = in_precision(torch.nn.Sequential(copy.deepcopy(module)), "bfloat16", True)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(x).float().detach()
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))


def test_what_was_said_last_holds() -> None:
    x = torch.randn(2, 1, 8, 8, 8)
    network = in_precision(in_precision(unet(), "float32"), "bfloat16", True)
    assert torch.equal(network(x), in_precision(unet(), "bfloat16", True)(x))
    assert seen_inside(in_precision(network, "float32"), x) == {torch.float32}


def test_a_large_image_is_normalised_as_pytorch_does_it() -> None:
    """What is summed one after the other in float32 would be off by more than bfloat16 is: here by 5 in 100."""
    x = torch.full((1, 16, 128, 128, 128), 7.75).contiguous(memory_format=torch.channels_last_3d)
    x[..., ::10] = torch.randn(128, 128, 13)
    with torch.no_grad():
        assert torch.equal(in_precision(Normalised(3, False), "bfloat16", True)(x), Normalised(3, False)(x).float())


@pytest.mark.parametrize("word", ["float32", "bfloat16"])
def test_gradients_lie_in_memory_as_what_they_are_of(word) -> None:
    """PyTorch takes many times as long for an activation whose gradient lies in another order."""
    network, seen = unet(), []

    def compare(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        output.register_hook(lambda gradient: seen.append((output.stride(), gradient.stride())))

    for module in network.modules():
        if isinstance(module, torch.nn.PReLU):
            module.register_forward_hook(compare)
    scores = in_precision(network, word, True)(torch.randn(2, 1, 16, 16, 16))
    assert scores.is_contiguous()
    (scores * torch.randn(scores.shape)).sum().backward()
    assert seen and all(strides == of_gradient for strides, of_gradient in seen)


def test_a_copy_computes_with_its_own_weights() -> None:
    network = in_precision(unet(), "bfloat16")
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    x = torch.randn(1, 1, 8, 8, 8)
    assert not other(x).any() and network(x).any()
    assert seen_inside(other, x) == {torch.bfloat16}


def test_each_head_of_deep_supervision_is_float32() -> None:
    network = UNetPlusPlus(spatial_dims=3, out_channels=2, features=[4, 4, 4, 8, 8, 4], deep_supervision=True)
    heads = in_precision(network, "bfloat16").train()(torch.randn(1, 1, 32, 32, 32))
    assert isinstance(heads, list) and {head.dtype for head in heads} == {torch.float32}


def test_the_order_in_memory_is_asked_of_the_input_and_the_kernels() -> None:
    network = in_precision(unet(), "float32", channels_last=True)
    kernel = next(value for value in network.parameters() if value.ndim == 5 and value.shape[1] > 1)
    assert kernel.is_contiguous(memory_format=torch.channels_last_3d)
    inside: list[torch.Tensor] = []
    convolution = next(module for module in network.modules() if isinstance(module, torch.nn.Conv3d))
    convolution.register_forward_hook(lambda _module, _inputs, output: inside.append(output))
    assert network(torch.randn(2, 1, 8, 8, 8)).is_contiguous()
    assert inside[0].is_contiguous(memory_format=torch.channels_last_3d)


def test_float16_is_refused_on_a_cpu_with_what_helps() -> None:
    with pytest.raises(UsageError, match="float16") as caught:
        in_precision(unet(), "float16")
    assert "precision=bfloat16" in (caught.value.hint or "")


@pytest.mark.parametrize(("kind", "used"), [("amx", "bfloat16"), ("avx512_bf16", "bfloat16"), ("neither", "float32")])
def test_auto_goes_by_what_the_cpu_multiplies(monkeypatch, kind: str, used: str) -> None:
    monkeypatch.setattr(precision, "cpu_kind", lambda: kind)
    assert precision_of("auto", "cpu") == used
    assert precision_of("float32", "cpu") == "float32" and precision_of("auto", "mps") == "float32"


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("fpu avx512f avx512_bf16 amx_bf16 amx_tile", "amx"),
        ("fpu avx512f avx512_bf16", "avx512_bf16"),
        ("fpu avx2", "neither"),
        ("", "neither"),
    ],
)
def test_the_kind_of_cpu_is_what_the_system_says(monkeypatch, flags: str, kind: str) -> None:
    monkeypatch.setattr(provenance, "_of_processor", lambda name: flags if name == "flags" else "")
    assert provenance.cpu_kind() == kind


@pytest.mark.parametrize(("native", "used"), [(True, "bfloat16"), (False, "float16")])
def test_auto_on_cuda_and_the_scaler(monkeypatch, native: bool, used: str) -> None:
    assert torch.cuda.is_available() or precision_of("auto", "cuda") == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert precision_of("auto", "cuda") == used
    assert scales_loss("auto", "cuda") == (used == "float16")
    assert not scales_loss("bfloat16", "cuda") and not scales_loss("bfloat16", "cpu")


def test_a_compiled_network_computes_the_same_under_the_same_names(monkeypatch) -> None:
    compile_module = torch.nn.Module.compile
    # the capture of the graph is real, what it is compiled to is not: that needs a compiler and a minute
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_module(self, backend="eager"))
    x = torch.randn(2, 1, 8, 8, 8)
    for word in ("float32", "bfloat16"):
        plain, made = in_precision(unet(), word, True), in_precision(unet(), word, True, compiled=True)
        assert list(plain.state_dict()) == list(made.state_dict())
        scores = made(MetaTensor(x))
        assert scores.dtype == torch.float32 and torch.allclose(scores, plain(x), atol=1e-6)
        scores.sum().backward()
        assert all(parameter.grad is not None for parameter in made.parameters())
        with torch.no_grad():
            other = copy.deepcopy(made)
            for parameter in other.parameters():
                parameter.zero_()
            assert not other(x).any() and made(x).any()
