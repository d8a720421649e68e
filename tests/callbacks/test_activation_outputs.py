"""Outputs of any form and precision are read, or the layer is named with the reason."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lightning_depth.callbacks import ActivationMonitor, measure_activations
from lightning_depth.functional.activations import gram_matrix, rank_of_gram
from tests.callbacks.toy import Batch, Toy, fit, rows


@dataclass
class Record:
    hidden: Tensor
    weights: Tensor | None = None


class Pair(NamedTuple):
    hidden: Tensor
    count: int


WRAPPED: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "dataclass": (Record, lambda output: output.hidden),
    "named tuple": (lambda x: Pair(x, 3), lambda output: output.hidden),
    "mapping": (lambda x: OrderedDict(loss=None, hidden=x), lambda output: output["hidden"]),
    "list": (lambda x: [x], lambda output: output[0]),
    "nested": (
        lambda x: torch.nested.as_nested_tensor(list(x[:, None]), layout=torch.jagged),
        lambda output: torch.cat(output.unbind()),
    ),
    "complex": (lambda x: torch.complex(x, 0 * x), lambda output: output.real),
    "double": (lambda x: x.double(), lambda output: output.float()),
}


class Wrapping(nn.Module):
    """A block whose output comes in a wrapper, and whose input does not."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.wrap = nn.Linear(16, 16), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(x + F.relu(self.linear(x)))


class Stack(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], Any], unwrap: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(16, 16), nn.Linear(16, 3)
        self.blocks = nn.ModuleList(Wrapping(wrap) for _ in range(4))
        self.unwrap = unwrap

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = self.unwrap(block(x))
        return self.head(x)


class Wide(Toy):
    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        return super().training_step((batch[0].repeat(1, 3)[:, :16], batch[1]), batch_idx)


def monitor(**options: Any) -> ActivationMonitor:
    return ActivationMonitor(**{"every_n_steps": 1, "min_samples": 8, **options})


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", WRAPPED)
def test_wrapped_outputs_are_measured_as_plain_ones(form: str) -> None:
    plain, wrapped = monitor(), monitor()
    for seen, functions in ((plain, (lambda x: x, lambda x: x)), (wrapped, WRAPPED[form])):
        torch.manual_seed(0)
        fit(Wide(Stack(*functions)), seen)
    assert wrapped.history["layer"] == plain.history["layer"]
    for column in ("rms", "effective_rank", "variety"):
        assert wrapped.history[column] == pytest.approx(plain.history[column], rel=1e-3)
    assert wrapped._summary() == "ActivationMonitor took 4 measurements."


@pytest.mark.parametrize(
    ("wrap", "unwrap", "reason"),
    [
        (
            lambda x: SimpleNamespace(h=x),
            lambda output: output.h,
            "its output is a SimpleNamespace, in which no tensor of real numbers was found",
        ),
        (
            lambda x: x.to_sparse(),
            lambda output: output.to_dense(),
            "its output is sparse",
        ),
    ],
    ids=["attributes", "sparse"],
)
def test_layers_that_cannot_be_read_are_named_with_the_reason(
    wrap: Any, unwrap: Any, reason: str
) -> None:
    seen = monitor()
    fit(Wide(Stack(wrap, unwrap)), seen)
    assert set(seen.history["layer"]) == {"net.stem", "net.head"}
    assert seen._summary() == (
        "ActivationMonitor took 4 measurements. 4 layers are not measured: net.blocks.0, "
        f"net.blocks.1, net.blocks.2 and 1 more ({reason})."
    )


def test_a_layer_that_never_runs_is_named() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    seen = monitor()
    fit(Toy(Branch()), seen)
    assert seen._summary() == (
        "ActivationMonitor took 4 measurements. 1 layer is not measured: net.idle (no call of it "
        "was seen)."
    )


def test_a_layer_that_is_read_later_is_not_named() -> None:
    class Late(Toy):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            net: Any = self.net
            net.wrap = SimpleNamespace if batch_idx < 2 else (lambda h: h)
            output = net.body(batch[0]) if batch_idx else net.body(batch[0]) + 0
            return F.cross_entropy(net.head(output), batch[1])

    net = nn.ModuleDict({"body": nn.Linear(6, 6), "head": nn.Linear(6, 3)})
    seen = monitor()
    fit(Late(net), seen)
    assert seen._summary() == "ActivationMonitor took 4 measurements."


def test_a_compiled_model_measured_nothing() -> None:
    module, seen = Toy(), monitor()
    module.net.compile(backend="eager")
    with pytest.warns(UserWarning, match=r"^ActivationMonitor measures nothing in this run"):
        fit(module, seen)
    assert seen._summary() == (
        "ActivationMonitor measured nothing: net.0, net.1, net.2 and 3 more (compiled, and hooks "
        "do not run in compiled code)."
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_compiled_layers_are_named() -> None:
    module, seen = Toy(), monitor()
    module.net[2].compile(backend="eager")  # type: ignore[index,operator]
    fit(module, seen)
    assert seen._summary() == (
        "ActivationMonitor took 4 measurements. 1 layer is not measured: net.2 (compiled, and "
        "hooks do not run in compiled code)."
    )


class Packed(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.rnns = nn.ModuleList(nn.LSTM(16, 16, batch_first=True) for _ in range(depth))
        self.head = nn.Linear(16, 3)
        self.outputs: list[PackedSequence] = []

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.arange(len(x)) % 6 + 2
        steps = x[:, None] + torch.arange(7.0)[:, None] * 0.1
        packed: Any = pack_padded_sequence(steps, lengths, batch_first=True, enforce_sorted=False)
        self.outputs.clear()
        for rnn in self.rnns:
            packed, (hidden, _) = rnn(packed)
            self.outputs.append(packed)
        return self.head(hidden[-1])


def test_time_steps_of_packed_sequences_are_not_taken_for_samples() -> None:
    torch.manual_seed(0)
    net, x = Packed(), noise(32, 16)
    seen = measure_activations(net, lambda: net(x))
    assert seen.findings == ()
    for row, packed in zip(seen.layers, net.outputs, strict=False):
        padded, lengths = pad_packed_sequence(packed, batch_first=True)
        order = packed.sorted_indices[:16]
        outputs = padded[order, lengths[order].min() - 1].detach()  # the longest, while all last
        gram = gram_matrix(outputs)
        assert row["variety"] == pytest.approx(gram.trace().item(), rel=1e-4)
        assert row["effective_rank"] == pytest.approx(rank_of_gram(gram[None]).item(), rel=1e-3)
        assert row["rms"] == pytest.approx(packed.data.square().mean().sqrt().item(), rel=1e-5)


def test_a_window_counts_samples_and_not_time_steps() -> None:
    seen = monitor(min_samples=24)
    module = Wide(nn.Sequential(nn.Unflatten(1, (4, 4)), nn.Linear(4, 6), nn.ReLU(), Last()))
    fit(module, seen)
    known = [not math.isnan(row["net.1"]) for row in rows(seen.history, "dead")]
    assert known == [False, False, True, True]  # batches of eight


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(0, 1)).view(-1, 4, 3)[:, -1]


@pytest.mark.parametrize("precision", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_precision_is_measured(precision: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
    )
    x = noise(64, 16)
    wanted = measure_activations(net, lambda: net(x)).layers
    net = net.to(precision)
    found = measure_activations(net, lambda: net(x.to(precision))).layers
    for one, other in zip(found, wanted, strict=True):
        for column in ("rms", "variety", "effective_rank"):
            assert one[column] == pytest.approx(other[column], rel=2e-2)


def test_half_precision_does_not_overflow() -> None:
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3)).half()
    with torch.no_grad():
        net[0].bias.fill_(3e4)  # type: ignore[union-attr,operator]
    x = noise(64, 16).half()
    assert measure_activations(net, lambda: net(x)).layers[0]["rms"] == pytest.approx(3e4, rel=1e-2)


def test_numbers_that_are_not_finite_are_no_finding_and_no_warning() -> None:
    class Broken(Toy):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            bad = math.nan if batch_idx < 6 else math.inf
            return super().training_step((batch[0] * bad, batch[1]), batch_idx)

    for activation in (nn.ReLU, nn.GELU, nn.Tanh, lambda: nn.LeakyReLU(0.0)):
        net = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), activation()) for _ in range(4)))
        seen = monitor()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", module="lightning")
            fit(Broken(net, batches=12), seen)
        assert seen.findings == []
        assert len(set(seen.history["step"])) == 12


@pytest.mark.parametrize(
    "output",
    [
        lambda x: (x > 0).long(),
        lambda x: x[:0],
        lambda x: x[0, 0],
        lambda x: None,
        lambda x: "nothing",
    ],
    ids=["whole numbers", "no elements", "a single number", "none", "text"],
)
def test_odd_outputs_break_nothing(output: Callable[[Tensor], Any]) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.side = nn.Linear(6, 6), Side()
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x)
            self.side(x)
            return self.head(x)

    class Side(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Any:
            return output(x * self.weight)

    seen = monitor(granularity="leaf")
    fit(Toy(Odd()), seen)
    assert {"net.body", "net.head"} <= set(seen.history["layer"])


def test_a_batch_of_one_is_measured_and_not_judged() -> None:
    class One(Toy):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            return super().training_step((batch[0][:1], batch[1][:1]), batch_idx)

    seen = monitor()
    fit(One(), seen)
    assert all(math.isfinite(size) for size in seen.history["rms"])
    assert all(math.isnan(rank) for rank in seen.history["effective_rank"])
    assert seen.findings == []


def test_inputs_by_keyword_are_read() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, *, hidden: Tensor) -> Tensor:
            return self.linear(input=F.relu(hidden))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.blocks = nn.Linear(6, 6), nn.ModuleList(Keyword() for _ in range(3))
            with torch.no_grad():
                self.first.bias[:3] = -100.0

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for block in self.blocks:
                x = block(hidden=x)
            return x

    net, x = Net(), noise(600, 6)
    assert measure_activations(net, lambda: net(x)).layers[0]["dead"] >= 0.5
