"""What every registered block must do, for images and for MLPs."""

from __future__ import annotations

import inspect
import pickle
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from lightning_depth.blocks import BlockFactory, block_factory, list_blocks
from lightning_depth.blocks._registry import _BUILDERS

IMAGES_ONLY = {"inception", "inverted_residual", "separable"}
OURS = [name for name in list_blocks() if _BUILDERS[name].__module__.startswith("lightning_depth")]
CASES = [(name, dims) for name in OURS for dims in (2, 0) if dims == 2 or name not in IMAGES_ONLY]
ACTIVATIONS = ["relu", "leaky_relu", "prelu", "elu", "silu", "sigmoid", "tanh", "ELU", nn.Softplus]
NORMS = ["batchnorm", "groupnorm", "layernorm", None, "none", partial(nn.GroupNorm, 1)]
INITS = ["kaiming", "xavier", "gaussian", "zero_last_gamma", "depth_scaled"]


def make(name: str, dims: int = 2, **options: Any) -> BlockFactory:
    if name == "dense":
        options["growth_rate"] = 8
    return block_factory(name, **({} if dims == 2 else {"dims": dims}), **options)


def sample(dims: int, channels: int = 16, batch: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, channels, 8, 8) if dims else (batch, channels)
    return torch.randn(shape, generator=generator)


def test_only_those_that_are_an_activation_take_none() -> None:
    assert [name for name in OURS if not make(name).accepts("activation")] == ["crelu", "maxout"]


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_shape_and_every_gradient(name: str, dims: int) -> None:
    block = make(name, dims)(16, 32)
    output = block(sample(dims))
    output.square().mean().backward()
    assert output.shape == ((4, 32, 8, 8) if dims else (4, 32))
    assert block.out_channels == 32
    assert output.isfinite().all()
    assert all(parameter.grad is not None for parameter in block.parameters())


@pytest.mark.parametrize("name", OURS)
def test_stride_halves_the_image(name: str) -> None:
    assert make(name)(16, 32, 2)(sample(2)).shape == (4, 32, 4, 4)


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_input_is_left_as_it_was(name: str, dims: int) -> None:
    x = sample(dims)
    before = x.clone()
    make(name, dims, norm=None)(16, 32)(x)
    assert torch.equal(x, before)


def train(block: nn.Module, dims: int, channels: int = 16) -> Tensor:
    """Run a block forward and backward; whatever was asked of it, nothing may be cut off."""
    output = block(sample(dims, channels))
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    assert output.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
    return output


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize(
    ("name", "dims"), [(name, dims) for name, dims in CASES if make(name).accepts("activation")]
)
def test_activation_by_name_or_callable(name: str, dims: int, activation: Any) -> None:
    block = make(name, dims, activation=activation)(16, 32)
    train(block, dims)
    kinds = {type(module).__name__.lower() for module in block.modules()}
    expected = activation if isinstance(activation, str) else activation.__name__
    assert expected.replace("_", "").lower() in kinds


@pytest.mark.parametrize("norm", NORMS, ids=str)
@pytest.mark.parametrize(("name", "dims"), CASES)
def test_norm_by_name_or_callable(name: str, dims: int, norm: Any) -> None:
    block = make(name, dims, norm=norm)(16, 32)
    train(block, dims)
    kinds = {type(module).__name__ for module in block.modules() if "Norm" in type(module).__name__}
    expected = {
        "batchnorm": {"BatchNorm2d" if dims else "BatchNorm1d"},
        "groupnorm": {"GroupNorm"},
        "layernorm": {"LayerNorm2d" if dims else "LayerNorm"},
    }
    assert kinds == (expected.get(norm, set()) if isinstance(norm, str | None) else {"GroupNorm"})


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize(("name", "dims"), CASES)
def test_initial_weights_by_name(name: str, dims: int, init: str) -> None:
    block = make(name, dims, init=init)(64, 128)
    train(block, dims, channels=64)
    weights = [m.weight for m in block.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    if init == "gaussian":
        torch.testing.assert_close(weights[-1].std().item(), 0.01, rtol=0.1, atol=0)
    elif init == "xavier":
        fans = sum(nn.init._calculate_fan_in_and_fan_out(weights[-1]))
        expected = (2 / fans) ** 0.5
        torch.testing.assert_close(weights[-1].std().item(), expected, rtol=0.1, atol=0)


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_initial_weights_by_callable(name: str, dims: int) -> None:
    def init(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.zeros_(module.weight)

    block = make(name, dims, init=init)(16, 32)
    layers = [m for m in block.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert not any(layer.weight.any() for layer in layers)


DROPPING = {
    *("residual", "bottleneck", "preactivation", "preactivation_bottleneck"),
    "inverted_residual",
}


@pytest.mark.parametrize(("name", "dims"), [case for case in CASES if case[0] in DROPPING])
def test_stochastic_depth_trains_and_leaves_evaluation_alone(name: str, dims: int) -> None:
    torch.manual_seed(0)
    block = make(name, dims, drop_path=0.5)(16, 16)
    whole = make(name, dims)(16, 16)
    whole.load_state_dict(block.state_dict(), strict=True)
    assert torch.equal(block.eval()(sample(dims)), whole.eval()(sample(dims)))
    train(block.train(), dims)
    assert any(isinstance(module, DropPath) for module in block.modules())


def test_blocks_that_skip_nothing_have_no_stochastic_depth() -> None:
    assert {name for name in OURS if make(name).accepts("drop_path")} == DROPPING


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_pickles_and_returns_its_state(name: str, dims: int) -> None:
    block = make(name, dims)(16, 32).eval()
    copy = pickle.loads(pickle.dumps(block))
    fresh = make(name, dims)(16, 32).eval()
    fresh.load_state_dict(block.state_dict(), strict=True)
    assert torch.equal(copy(sample(dims)), block(sample(dims)))
    assert torch.equal(fresh(sample(dims)), block(sample(dims)))


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_meta_device_allocates_nothing(name: str, dims: int) -> None:
    with torch.device("meta"):
        block = make(name, dims)(16, 32)
    assert all(parameter.is_meta for parameter in block.parameters())


@pytest.mark.parametrize("name", OURS)
def test_at_most_seven_options(name: str) -> None:
    parameters = inspect.signature(_BUILDERS[name]).parameters.values()
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert positional == ["in_channels", "out_channels", "stride"]
    assert len(parameters) - 3 <= 7


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_traces_and_scripts(name: str, dims: int) -> None:
    block = make(name, dims)(16, 32).eval()
    x = sample(dims)
    assert torch.equal(torch.fx.symbolic_trace(block)(x), block(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript
        scripted = torch.jit.script(block)
    torch.testing.assert_close(scripted(x), block(x))


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_compiles_into_one_graph_with_its_backward(name: str, dims: int) -> None:
    torch._dynamo.reset()
    block = make(name, dims)(16, 32)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    compiled(sample(dims)).sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


@pytest.mark.parametrize("name", sorted(IMAGES_ONLY))
def test_images_only_blocks_say_so(name: str) -> None:
    sentence = f"^Block '{name}' is for images only, so `dims` must be 2, but got 0.$"
    with pytest.raises(ValueError, match=sentence):
        block_factory(name, dims=0)
