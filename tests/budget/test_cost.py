"""Costs against definitions, and against a real run with saved-tensor hooks on the processor."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

from lightning_depth.budget import Cost, measure_cost
from lightning_depth.errors import ConfigurationError


def run_for_real(model: nn.Module, input_shape: tuple[int, ...]) -> Cost:
    """Measure on real memory, the slow way: batch of two, training mode, everything allocated."""
    model.train()
    sample = torch.randn(2, *input_shape)
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(sample)  # kept alive: freed memory would be handed out again
    with FlopCounterMode(display=False, custom_mapping=_unknown_to_older_torch()) as counter:
        model(sample)
    for tensor in [*model.parameters(), *model.buffers(), sample]:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    num_bytes = sum(storage.nbytes() for storage in kept.values())
    del output
    params = sum(parameter.numel() for parameter in model.parameters())
    return Cost(params, counter.get_total_flops() // 4, num_bytes // 2)


def _unknown_to_older_torch() -> dict[Any, Any]:
    """Torch below 2.15 does not count the attention that it runs on a processor."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    if fused in flop_counter.flop_registry:
        return {}

    def count(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
        return flop_counter.sdpa_flop_count(q, k, v)  # type: ignore[no-untyped-call, no-any-return]

    return {fused: count}


class Attention(nn.Module):
    """Attention with a mask, as sequence models call it."""

    def __init__(self, boolean: bool) -> None:
        super().__init__()
        self.project = nn.Linear(16, 16)
        self.boolean = boolean

    def forward(self, x: Tensor) -> Tensor:  # (B, T, 16)
        q = self.project(x).unflatten(-1, (2, 8)).transpose(1, 2)
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        mask = causal if self.boolean else causal.float()
        return nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)


def _mlp_with_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 3))


REAL_RUNS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (_mlp_with_norm, (12,)),
    "dropout": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Tanh()), (8,)),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), (3, 64, 64)),
    "densenet": (lambda: timm.create_model("densenet121"), (3, 64, 64)),
    "mobilenet": (lambda: timm.create_model("mobilenetv2_100"), (3, 64, 64)),
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64), (3, 64, 64)),
    "swin": (lambda: timm.create_model("swin_tiny_patch4_window7_224"), (3, 224, 224)),
    "boolean mask": (lambda: Attention(boolean=True), (6, 16)),
    "float mask": (lambda: Attention(boolean=False), (6, 16)),
    "transformer": (lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), (6, 16)),
    "frozen": (lambda: _mlp_with_norm().requires_grad_(False), (12,)),
    "weight norm": (lambda: nn.utils.weight_norm(nn.Linear(8, 4)), (8,)),
    "parametrised": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)), (8,)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize(("build", "input_shape"), REAL_RUNS.values(), ids=REAL_RUNS.keys())
def test_cost_equals_a_real_run(
    build: Callable[[], nn.Module], input_shape: tuple[int, ...]
) -> None:
    model = build()
    assert measure_cost(model, input_shape) == run_for_real(model, input_shape)


def test_cost_of_an_mlp_follows_from_its_definition() -> None:
    model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3))
    # kept: the result of ReLU, which is also what the second layer needs
    assert measure_cost(model, (12,)) == Cost(12 * 20 + 20 + 20 * 3 + 3, 12 * 20 + 20 * 3, 4 * 20)


def test_attention_costs_its_two_products(monkeypatch: pytest.MonkeyPatch) -> None:
    # as in torch 2.6, which does not know the fused operation
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    monkeypatch.delitem(flop_counter.flop_registry, fused, raising=False)
    tokens, width = 6, 16
    projection, attention = tokens * width * width, 2 * tokens * tokens * width
    cost = measure_cost(Attention(boolean=False), (tokens, width))
    assert cost.multiply_adds == projection + attention


def test_resnet152_is_measured_in_about_a_second_without_memory() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet152()
    start = time.perf_counter()
    cost = measure_cost(model, (3, 224, 224))
    assert cost.params == 60_192_808
    assert cost.multiply_adds == 11_513_626_624
    assert time.perf_counter() - start < 10.0  # a second when nothing else runs


@pytest.mark.parametrize(
    ("name", "multiply_adds"),
    [("mobilenetv1_100", 568_740_352)],
)
def test_multiply_adds_are_those_of_the_paper(name: str, multiply_adds: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert measure_cost(model, (3, 224, 224)).multiply_adds == multiply_adds


class LayerDrop(nn.Module):
    """Draws a random number on the processor, wherever the network is."""

    def forward(self, x: Tensor) -> Tensor:
        return x if torch.rand((), device="cpu") < 0.5 else 2 * x


def test_model_is_not_touched() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), LayerDrop()).eval()
    calls: list[int] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    measure_cost(model, (6,))
    assert calls == []
    assert not model.training
    assert not model[1].training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())


def test_half_precision_and_inference_mode_change_nothing() -> None:
    model = _mlp_with_norm()
    cost = measure_cost(model, (12,))
    with torch.inference_mode():
        assert measure_cost(model.to(torch.bfloat16).eval(), (12,)) == cost


def test_tied_weights_count_once() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    assert measure_cost(model, (5,)).params == 25 + 5 + 5


def test_lazy_layers_are_measured_and_stay_lazy() -> None:
    model = nn.Sequential(nn.LazyLinear(7), nn.LazyBatchNorm1d(), nn.Linear(7, 3))
    assert measure_cost(model, (4,)).params == 4 * 7 + 7 + 14 + 7 * 3 + 3
    assert model[0].has_uninitialized_params()


def test_compiled_model_costs_what_it_was_before() -> None:
    model = _mlp_with_norm()
    assert measure_cost(torch.compile(model), (12,)) == measure_cost(model, (12,))


def test_module_attached_to_a_trainer_leaves_the_trainer_behind() -> None:
    class Owner:
        def __deepcopy__(self, memo: object) -> None:
            raise AssertionError("the owner was copied")

    model = _mlp_with_norm()
    model.__dict__["_trainer"] = Owner()
    assert measure_cost(model, (12,)).params == measure_cost(_mlp_with_norm(), (12,)).params


def test_shape_that_does_not_fit_is_named() -> None:
    start = "The network Linear cannot be measured with `input_shape` (5,): "
    with pytest.raises(ConfigurationError, match=f"^{re.escape(start)}.+"):
        measure_cost(nn.Linear(3, 4), (5,))


@pytest.mark.parametrize("shape", [(0,), (3, -1), (2.5,), "ab", 7], ids=str)
def test_shape_that_is_none_is_refused(shape: object) -> None:
    sentence = (
        "`input_shape` must be the lengths of one sample's axes, each at least 1, "
        f"but got {shape!r}."
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        measure_cost(nn.Linear(3, 4), shape)  # type: ignore[arg-type]  # wrong on purpose
