"""The gradient through time of recurrent modules, against autograd, and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader

from lightning_depth.callbacks import GradientFlowMonitor
from lightning_depth.callbacks._through_time import PROFILE, ThroughTime, judge_time
from lightning_depth.findings import Finding, FindingKind, Severity
from tests.callbacks.toy import QUIET

STEPS = 200


class Sequences(pl.LightningModule):
    """Random sequences of one number, and a class that nothing tells."""

    def __init__(self, net: nn.Module, steps: int = STEPS, batches: int = 12) -> None:
        super().__init__()
        self.net, self.steps, self.batches = net, steps, batches

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)

    def train_dataloader(self) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(0)
        rows = [
            [torch.randn(4, self.steps, 1, generator=generator), torch.arange(4) % 3]
            for _ in range(self.batches)
        ]
        return DataLoader(rows, batch_size=None)  # type: ignore[arg-type]


class Last(nn.Module):
    """A recurrent module under a name of choice, and a head on its last state."""

    def __init__(
        self, recurrent: nn.Module, name: str = "rnn", packed: bool = False, every: bool = False
    ) -> None:
        super().__init__()
        self.name, self.packed, self.every = name, packed, every
        self.add_module(name, recurrent)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        recurrent: Any = getattr(self, self.name)
        if self.packed:
            lengths = [x.shape[1] - shorter for shorter in (0, 9, 40, 70)]
            _, state = recurrent(pack_padded_sequence(x, lengths, batch_first=True))
            return self.head(state[-1])  # type: ignore[no-any-return]
        if not recurrent.batch_first:
            return self.head(recurrent(x.transpose(0, 1))[0][-1])  # type: ignore[no-any-return]
        output = recurrent(x)[0]
        return self.head(output).mean(1) if self.every else self.head(output[:, -1])  # type: ignore[no-any-return]


class Loop(nn.Module):
    """A cell under a name of choice, or linear maps, called once a step."""

    def __init__(self, cell: nn.Module | None, name: str = "cell") -> None:
        super().__init__()
        self.name = name if cell is not None else ""
        if cell is None:
            self.inward, self.onward = nn.Linear(1, 8), nn.Linear(8, 8)
        else:
            self.add_module(name, cell)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for place, step in enumerate(x.unbind(1)):
            state = self.move(place, step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)  # type: ignore[no-any-return]

    def move(self, place: int, step: Tensor, state: Any) -> Any:
        if self.name:
            return getattr(self, self.name)(step, state)
        known = self.onward(state) if state is not None else 0.0
        return torch.tanh(self.inward(step) + known)


def contract(net: nn.Module, gain: float = 0.5) -> nn.Module:
    """Make the recurrent weights a rotation times a gain."""
    for name, weight in net.named_parameters():
        if "weight_hh" in name or "onward.weight" in name:
            with torch.no_grad():
                for part in weight.split(weight.shape[1]):
                    part.copy_(torch.linalg.qr(part)[0] * gain)
    return net


def positive(net: nn.Module) -> nn.Module:
    """Recurrent weights of the identity, and units that stay above zero."""
    for name, weight in net.named_parameters():
        if "weight_hh" in name:
            nn.init.eye_(weight)
        elif "weight_ih" in name or "bias_hh" in name:
            nn.init.zeros_(weight)
        elif "bias_ih" in name:
            nn.init.constant_(weight, 0.01)
    return net


def opened(net: nn.Module) -> nn.Module:
    """Open the forget gates of an LSTM."""
    for name, bias in net.named_parameters():
        if "bias_ih" in name:
            nn.init.constant_(bias[8:16], 8.0)
    return net


def watch(net: nn.Module, steps: int = STEPS) -> list[Finding]:
    pl.seed_everything(0, verbose=False)
    monitor = GradientFlowMonitor(every_n_steps=1, on_finding="log")
    pl.Trainer(callbacks=[monitor], **{**QUIET, "max_epochs": 1}).fit(Sequences(net, steps))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    return monitor.findings


def rnn(**options: Any) -> nn.RNN:
    return nn.RNN(1, 8, **{"batch_first": True, **options})


LOSING: dict[str, tuple[Callable[[str], nn.Module], str]] = {
    "rnn": (lambda name: contract(Last(rnn(), name)), "rnn"),
    "time first": (lambda name: contract(Last(rnn(batch_first=False), name)), "rnn"),
    "packed": (lambda name: contract(Last(rnn(), name, packed=True)), "rnn"),
    "two layers": (lambda name: contract(Last(rnn(num_layers=2), name)), "rnn"),
    "both ways": (
        lambda name: contract(Last(nn.RNN(1, 4, batch_first=True, bidirectional=True), name)),
        "rnn",
    ),
    "gru": (lambda name: Last(nn.GRU(1, 8, batch_first=True), name), "gru"),
    "lstm": (lambda name: Last(nn.LSTM(1, 8, batch_first=True), name), "lstm"),
    "cell": (lambda name: contract(Loop(nn.RNNCell(1, 8), name)), "cell"),
    "lstm cell": (lambda name: Loop(nn.LSTMCell(1, 8), name), "lstm_cell"),
}


@pytest.mark.parametrize(("build", "layer"), LOSING.values(), ids=LOSING)
def test_what_is_lost_through_time_is_said_of_the_recurrent_layer(
    build: Callable[[str], nn.Module], layer: str
) -> None:
    torch.manual_seed(0)
    (finding,) = watch(build(layer))
    gated = "gru" in layer or "lstm" in layer
    severity = Severity.WARNING if gated else Severity.CRITICAL
    assert (finding.kind, finding.severity) == (FindingKind.VANISHING, severity)
    assert finding.layers == (f"net.{layer}",)
    assert finding.value >= 7.0
    assert f"through time falls by {finding.value:.1f} powers of ten" in finding.message


def test_linear_maps_in_a_loop_are_a_recurrent_net_too() -> None:
    torch.manual_seed(0)
    (finding,) = watch(contract(Loop(None)))
    assert (finding.kind, finding.severity) == (FindingKind.VANISHING, Severity.WARNING)
    assert "net.onward" in finding.layers


@pytest.mark.parametrize(
    ("build", "steps"),
    [
        (lambda: positive(Last(rnn(nonlinearity="relu"))), STEPS),
        (lambda: contract(Last(rnn(), every=True)), STEPS),
        (lambda: contract(Last(rnn())), 20),
        (lambda: opened(Last(nn.LSTM(1, 8, batch_first=True))), STEPS),
        (lambda: opened(Loop(nn.LSTMCell(1, 8))), STEPS),
    ],
    ids=["identity", "loss at every step", "short", "open gates", "open cell"],
)
def test_what_keeps_its_gradient_through_time_is_no_fault(
    build: Callable[[], nn.Module], steps: int
) -> None:
    torch.manual_seed(0)
    assert watch(build(), steps) == []


def test_a_gradient_that_is_cut_through_time_is_not_vanishing() -> None:
    class Cut(Loop):
        def move(self, place: int, step: Tensor, state: Any) -> Any:
            state = super().move(place, step, state)
            return state.detach() if place % 40 == 39 and place < STEPS - 40 else state

    torch.manual_seed(0)
    assert watch(contract(Cut(nn.RNNCell(1, 8)), 0.98)) == []


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_profile_is_that_of_autograd(batch_first: bool) -> None:
    torch.manual_seed(0)
    net = contract(Last(rnn(batch_first=batch_first)), 0.9)
    x = torch.randn(4, 81, 1)
    timed = ThroughTime(net)
    timed.attach()
    net(x).square().sum().backward()
    names, norms = timed.take(torch.device("cpu"), [n for n, _ in net.named_parameters()])
    timed.release()
    assert names == ["rnn"]
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(net(x).square().sum(), [x])
    sizes = gradient.double().norm(dim=-1)
    wanted = (sizes[:, ::10] / sizes[:, -1:]).median(0).values
    steps, *shares = norms.read().values.tolist()
    assert len(shares) == PROFILE - 1
    assert steps == 80.0
    assert shares == pytest.approx(wanted.tolist(), rel=1e-6)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("embedded", [True, False])
@pytest.mark.parametrize("both", [True, False])
def test_a_watched_run_is_bit_identical(kind: Any, embedded: bool, both: bool) -> None:
    def weights(*callbacks: pl.Callback) -> list[Tensor]:
        pl.seed_everything(0, verbose=False)
        recurrent = kind(4 if embedded else 1, 4, 2, batch_first=True, bidirectional=both)
        net: nn.Module = Last(recurrent)
        net.head = nn.Linear(8 if both else 4, 3)  # type: ignore[assignment]
        if embedded:
            net = nn.Sequential(nn.Linear(1, 4), net)
        module = Sequences(net, steps=70, batches=4)
        pl.Trainer(callbacks=list(callbacks), **{**QUIET, "max_epochs": 1}).fit(module)
        return [parameter.detach().clone() for parameter in module.parameters()]

    bare, watched = weights(), weights(GradientFlowMonitor(every_n_steps=1))
    assert all(map(torch.equal, bare, watched))


def test_a_profile_that_rises_on_its_way_is_none() -> None:
    def profile(*decades: float) -> dict[str, list[float]]:
        return {"rnn": [199.0, *(10**decade for decade in decades)]}

    falling = (-16, -14, -12, -10, -8, -6, -4, -2, 0)
    assert [finding.value for finding in judge_time(profile(*falling), {})] == [16.0]
    assert judge_time(profile(-16, -2, *falling[2:]), {}) == []
    assert judge_time(profile(-6, -5, -4, -4, -3, -2, -2, -1, 0), {}) == []
    assert judge_time(profile(-16, -1, -1, -1, -1, -1, -1, -1, 0), {}) == []
    assert judge_time(profile(*falling[:-1], math.nan), {}) == []


def test_a_fall_that_grows_less_is_given_time() -> None:
    class Opening(Sequences):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            contract(self.net, 0.5 + 0.02 * batch_idx)

    pl.seed_everything(0, verbose=False)
    monitor = GradientFlowMonitor(every_n_steps=1, on_finding="log")
    module = Opening(contract(Last(rnn())), steps=80)
    pl.Trainer(callbacks=[monitor], **{**QUIET, "max_epochs": 1}).fit(module)
    assert monitor.findings == []
