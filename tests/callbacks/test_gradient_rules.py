"""When the gradient monitor must speak, and when not: a pair of nets for each rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_depth.callbacks import GradientFlowMonitor, GradientSnapshot, measure_gradients
from lightning_depth.callbacks._flow import Flow
from lightning_depth.findings import Finding, FindingKind, Severity
from tests.callbacks.toy import Toy, fit, make_batches, make_net


def watch(module: Toy, **options: Any) -> list[Finding]:
    """Train with a monitor, and return what it found."""
    monitor = GradientFlowMonitor(
        **{"every_n_steps": 5, "granularity": "leaf", "on_finding": "log", **options}
    )
    fit(module, monitor)
    return monitor.findings


def alarms(findings: list[Finding]) -> list[FindingKind]:
    return [finding.kind for finding in findings if finding.severity is not Severity.INFO]


def look(net: nn.Module, **options: Any) -> GradientSnapshot:
    """Return what one backward pass shows of a net that reads rows of six numbers."""
    ((x, y),) = make_batches(1, size=32)
    cross_entropy(net(x), y).backward()
    return measure_gradients(net, **options)


# A gradient that is not there.


class Dropping(nn.Module):
    """Blocks of which each is skipped at random, as in stochastic depth."""

    def __init__(self, share: float, blocks: int = 6) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(blocks))
        self.generator = torch.Generator().manual_seed(1)
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if torch.rand((), generator=self.generator) >= self.share:
                x = x + block(x)
        return self.head(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("share", [0.5, 0.8])
@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("to_none", [True, False], ids=["none", "zeros"])
def test_blocks_that_are_dropped_at_random_are_no_fault(
    share: float, every: int, to_none: bool
) -> None:
    class Kept(Toy):
        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
            optimizer.zero_grad(set_to_none=to_none)

    assert alarms(watch(Kept(Dropping(share), batches=60), every_n_steps=every)) == []


def test_what_is_seldom_used_is_told_with_how_often() -> None:
    module = Toy(Dropping(0.9, blocks=2), batches=60)
    (finding,) = watch(module, every_n_steps=1)
    expected = torch.rand(60, 2, generator=torch.Generator().manual_seed(1)) >= 0.9
    assert (finding.kind, finding.severity) == (FindingKind.NO_GRADIENT, Severity.INFO)
    assert finding.layers == ("net.blocks.0", "net.blocks.1")
    for place, count in enumerate(expected.sum(0).tolist()):
        assert f"net.blocks.{place} in {count} of 60" in finding.message


class Routed(nn.Module):
    """Each step is answered by one expert; the last one's turn never comes, or comes once."""

    def __init__(self, turn: int | None = None) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.experts = nn.ModuleList(nn.Linear(6, 3) for _ in range(4))
        self.turn, self.step = turn, -1

    def forward(self, x: Tensor) -> Tensor:
        self.step += 1
        chosen = 3 if self.step == self.turn else self.step % 3
        return self.experts[chosen](self.stem(x))  # type: ignore[no-any-return]


def test_an_expert_that_was_chosen_once_between_measurements_is_not_without_gradient() -> None:
    findings = watch(Toy(Routed(turn=33), batches=40), every_n_steps=10)
    assert not any("no gradient at all" in finding.message for finding in findings)


def test_experts_that_are_registered_first_and_wait_are_not_cut_off() -> None:
    class Sorted(Routed):
        def __init__(self) -> None:
            super().__init__()
            del self.stem
            self.stem = nn.Linear(6, 6)  # last in the order of registration

        def forward(self, x: Tensor) -> Tensor:
            self.step += 1
            return self.experts[3 if self.step < 6 else 0](self.stem(x))  # type: ignore[no-any-return]

    module = Toy(Sorted(), batches=9)
    (finding,) = watch(module, every_n_steps=1)
    assert "in 9 steps" in finding.message
    assert finding.layers == ("net.experts.1", "net.experts.2")


def test_an_expert_that_never_was_chosen_is_worth_knowing() -> None:
    (finding,) = watch(Toy(Routed(), batches=40), every_n_steps=10)
    assert finding.severity is Severity.INFO
    assert finding.layers == ("net.experts.3",)
    assert "no gradient at all in 40 steps, while other layers take turns" in finding.message


class Branching(nn.Module):
    """A trunk, and a branch that is not called or whose output is not used."""

    def __init__(self, called: bool) -> None:
        super().__init__()
        self.trunk, self.branch = make_net(2), nn.Linear(6, 3)
        self.loose = nn.Parameter(torch.ones(2, 2))
        self.called = called

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.trunk(x)
        if self.called:
            self.branch(x)
        return output


@pytest.mark.parametrize("called", [True, False])
def test_a_branch_without_use_is_told_with_all_its_parameters(called: bool) -> None:
    (finding,) = watch(Toy(Branching(called), batches=20))
    severity = Severity.CRITICAL if called else Severity.INFO  # what is not called is no fault
    assert (finding.kind, finding.severity) == (FindingKind.NO_GRADIENT, severity)
    assert finding.layers == ("net.loose", "net.branch")
    assert (finding.value, finding.step) == (3.0, 0)
    why = "" if called else ", as their layers did not run when that was looked at"
    assert finding.message == (
        f"3 parameters get no gradient at all in 20 steps{why}: net.loose, net.branch.weight, "
        "net.branch.bias."
    )


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = make_net(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.net[3:](self.net[:3](x).detach())  # type: ignore[no-any-return]


def test_what_is_cut_off_from_the_loss_is_told_after_patience() -> None:
    class Stopping(Toy):
        seen = 0

        def on_train_batch_end(self, *args: Any) -> None:
            self.seen += 1

    module = Stopping(Detached(), batches=20)
    (finding,) = watch(module, on_finding="stop")
    assert module.seen == 3
    assert finding.layers == ("net.net.0", "net.net.1.linear", "net.net.2.linear")
    assert finding.value == 6.0


def test_a_branch_is_told_before_the_end_of_a_long_run() -> None:
    module = Toy(Branching(called=True), batches=120)
    (finding,) = watch(module, on_finding="stop")
    assert 50 <= module.trainer.global_step < 120
    assert finding.layers == ("net.loose", "net.branch")


def test_parameters_in_no_watched_layer_are_looked_at_too() -> None:
    (finding,) = watch(Toy(Branching(called=False), batches=9), include="net.trunk*")
    assert finding.layers == ("net.loose", "net.branch.weight", "net.branch.bias")


def test_one_pass_says_no_more_than_that() -> None:
    (finding,) = look(Branching(called=False), granularity="leaf").findings
    assert (finding.kind, finding.severity) == (FindingKind.NO_GRADIENT, Severity.INFO)
    assert "get no gradient in this backward pass" in finding.message
    (finding,) = look(Detached()).findings
    assert finding.severity is Severity.CRITICAL


def test_counts_survive_a_resumption(tmp_path: Any) -> None:
    path = tmp_path / "half.ckpt"
    first = GradientFlowMonitor(every_n_steps=1, granularity="leaf", on_finding="log")
    trainer = fit(Toy(Routed(turn=5), batches=9), first)
    trainer.save_checkpoint(path)
    module, second = Toy(Routed(), batches=9), GradientFlowMonitor(
        every_n_steps=1, granularity="leaf", on_finding="log"
    )  # fmt: skip
    trainer.__class__(
        callbacks=[second], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, max_epochs=4,
    ).fit(module, ckpt_path=path)  # fmt: skip
    (finding,) = second.findings
    assert "net.experts.3 in 1 of 36" in finding.message


# What is tiny by design.


class Branch(nn.Module):
    """A residual branch behind a scale of any shape."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.gamma = nn.Parameter(scale)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.second(torch.tanh(self.first(x)))
        return x + (self.gamma * branch.view(-1, 6, 1, 1)).view(-1, 6)


def scaled(size: float, shape: tuple[int, ...] = (6, 1, 1), blocks: int = 6) -> nn.Sequential:
    branches = [Branch(torch.full(shape, size)) for _ in range(blocks)]
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), *branches, nn.Linear(6, 3))


def plain(blocks: int = 4) -> nn.Sequential:
    return make_net(blocks)


def zero_head(net: nn.Sequential) -> nn.Sequential:
    nn.init.zeros_(net[-1].weight)  # type: ignore[arg-type]
    return net


@pytest.mark.parametrize("granularity", ["block", "leaf"])
@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda: scaled(1e-7), "1.gamma, 2.gamma, 3.gamma and 3 more"),
        (lambda: zero_head(plain()), "5.weight"),
        (lambda: zero_head(scaled(0.0)), "7.weight"),
    ],
    ids=["layer scale", "head", "both"],
)
def test_what_begins_tiny_by_design_is_named_and_no_alarm(
    build: Callable[[], nn.Module], names: str, granularity: Any
) -> None:
    findings = look(build(), granularity=granularity).findings
    assert [(f.kind, f.severity) for f in findings] == [(FindingKind.VANISHING, Severity.INFO)]
    assert findings[0].message.endswith(f": {names}.")


@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1), (1,), ()], ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-8, 1e-6])
@pytest.mark.parametrize("granularity", ["block", "leaf"])
def test_scales_of_any_shape_raise_nothing_in_training(
    shape: tuple[int, ...], size: float, granularity: Any
) -> None:
    module = Toy(scaled(size, shape), lambda p: torch.optim.Adam(p, 1e-3), batches=20)
    assert watch(module, every_n_steps=1, granularity=granularity) == []


def test_scales_in_series_are_no_trend() -> None:
    torch.manual_seed(0)
    branches = [Branch(torch.full((6, 1, 1), 1e-7)) for _ in range(6)]
    late = [Branch(torch.full((6, 1, 1), 1e-2)) for _ in range(3)]
    net = nn.Sequential(nn.Linear(6, 6), *branches, *late, nn.Linear(6, 3))
    assert watch(Toy(net, batches=9), every_n_steps=1, granularity="block") == []


@pytest.mark.parametrize("shape", [(6, 1, 1), (6,)], ids=str)
def test_tiny_scales_that_are_layers_of_their_own_explode_not(shape: tuple[int, ...]) -> None:
    class Scaling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.full(shape, 1e-6))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gamma.view(-1)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.first, self.second = nn.Linear(6, 6), Scaling(), Scaling()

        def forward(self, x: Tensor) -> Tensor:
            branch = torch.tanh(self.linear(x))
            return x + self.first(branch) + self.second(branch)

    torch.manual_seed(0)
    net = nn.Sequential(*(Twice() for _ in range(4)), nn.Linear(6, 3))
    module = Toy(net, lambda p: torch.optim.Adam(p, 1e-3), batches=12)
    assert watch(module, every_n_steps=1) == []


@pytest.mark.parametrize("rate", [1e-3, 1e-9, 0.0], ids=["trains", "warms up", "waits"])
@pytest.mark.parametrize("build", [plain, lambda: scaled(0.0)], ids=["plain", "gated"])
@pytest.mark.parametrize("blocks", [1, 6])
def test_a_head_that_begins_at_zero_raises_nothing_in_training(
    rate: float, build: Callable[[int], nn.Sequential], blocks: int
) -> None:
    net = zero_head(build(blocks) if build is plain else build())  # type: ignore[call-arg]
    module = Toy(net, lambda p: torch.optim.Adam(p, rate), batches=12)
    assert watch(module, every_n_steps=1, granularity="leaf") == []


def test_a_low_rank_addition_that_begins_at_zero_explodes_not() -> None:
    class Low(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept = nn.Linear(6, 6).requires_grad_(False)
            self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)
            nn.init.zeros_(self.up.weight)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.kept(x) + self.up(self.down(x)))

    torch.manual_seed(0)
    net = nn.Sequential(*(Low() for _ in range(4)), nn.Linear(6, 3))
    module = Toy(net, lambda p: torch.optim.Adam(p, 1e-2), batches=20)
    assert watch(module, every_n_steps=1) == []


def test_a_net_that_begins_at_zero_altogether_is_no_design() -> None:
    net = plain()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    findings = watch(Toy(net, batches=9), every_n_steps=1)
    assert alarms(findings) == [FindingKind.VANISHING]


def test_a_dead_net_is_found_although_its_tokens_begin_at_zero() -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos_embed = nn.Parameter(torch.zeros(1, 6))
            self.net = make_net(4, activation=nn.ReLU)
            nn.init.constant_(self.net[3].linear.bias, -100.0)  # type: ignore[union-attr,arg-type]

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x + self.pos_embed)  # type: ignore[no-any-return]

    (finding,) = look(Dead()).findings
    assert (finding.kind, finding.severity) == (FindingKind.VANISHING, Severity.WARNING)
    assert finding.layers[-1] == "net.3"


# What the numbers say.


def squashed(depth: int, gain: float) -> nn.Sequential:
    """Linear layers, every one of which takes a part of the gradient on its way to the input."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for _ in range(depth - 1):
        parts += [nn.Linear(16, 16), nn.Sigmoid()]
    net = nn.Sequential(nn.Linear(6, 16), nn.Sigmoid(), *parts[:-2], nn.Linear(16, 3))
    with torch.no_grad():
        for part in list(net)[:-1]:
            if isinstance(part, nn.Linear):
                part.weight.mul_(gain)
                part.bias.fill_(4.0)
    return net


def test_three_layers_that_lose_their_gradient_are_found() -> None:
    findings = watch(Toy(squashed(3, 1.0), batches=9), every_n_steps=1)
    assert alarms(findings) == [FindingKind.VANISHING]
    (finding,) = findings
    assert finding.value >= 2.5
    assert finding.layers == ("net.0",)
    assert f"falls by {finding.value:.1f} powers of ten" in finding.message
    assert "interval" not in finding.message


def test_three_layers_of_which_only_the_last_differs_are_no_trend() -> None:
    net = make_net(1)
    with torch.no_grad():
        net[-1].weight.mul_(1e-4)  # type: ignore[operator,union-attr]
    assert alarms(watch(Toy(net, batches=9), every_n_steps=1)) == []


@pytest.mark.parametrize(
    ("logs", "rises"),
    [([-0.77, -2.27, -2.13, -3.05, -3.03], False), ([-0.7, -1.3, -1.9, -2.4, -3.1], True)],
    ids=["a stem before parallel experts", "layer by layer"],
)
def test_a_rise_in_one_of_five_layers_is_no_trend(logs: list[float], rises: bool) -> None:
    reading = SimpleNamespace(watched=SimpleNamespace(trend_depths=np.arange(5.0)))
    flow = Flow(cast(Any, reading), 10.0 ** np.array(logs), "")
    assert flow.trend.low > 1 or flow.trend.high < 1
    assert (flow.fall < -1.7) == rises


def said(finding: Finding) -> tuple[float, float]:
    """Return the powers of ten that a message names, and its factor from layer to layer."""
    fall = re.search(r"by ([\d.]+) powers of ten", finding.message)
    each = re.search(r"([\d.]+)-fold with every layer", finding.message)
    assert fall is not None
    assert each is not None
    return float(fall[1]), float(each[1])


@pytest.mark.parametrize("rising", [False, True])
def test_the_number_said_is_the_one_held_against_the_threshold(rising: bool) -> None:
    net = make_net(12, activation=nn.Identity)
    with torch.no_grad():
        for place, part in enumerate(net):
            gain = 4.0 if rising else 0.2
            for weight in part.parameters():
                # a change of variables between the layers: the function stays what it is
                weight.mul_(gain if 0 < place < 12 else gain**-6)
    ((x, y),) = make_batches(1, size=32)
    cross_entropy(net(x), y).backward()
    scale = 10 ** torch.linspace(-1, 4, 14)
    for part, size in zip(net, scale.flip(0) if rising else scale, strict=True):
        for weight in part.parameters():
            weight.grad = weight.detach() * size  # gradient over weight is what we say it is
    snapshot = measure_gradients(net)
    (finding,) = [f for f in snapshot.findings if f.kind.value != "NO_GRADIENT"]
    fall, each = said(finding)
    blocks = 12
    assert finding.kind is (FindingKind.EXPLODING if rising else FindingKind.VANISHING)
    assert finding.value == pytest.approx(5 * (blocks - 1) / 13, rel=1e-4)
    assert fall == pytest.approx(finding.value, abs=0.05)
    assert each == pytest.approx(10 ** (5 / 13), rel=5e-3)
    factor = 1 / snapshot.shrink_per_layer if rising else snapshot.shrink_per_layer
    assert factor == pytest.approx(each, rel=5e-3)
    assert each ** (blocks - 1) == pytest.approx(10**finding.value, rel=0.1)
    rows = {row["layer"]: row["grad_to_weight"] for row in snapshot.layers if row["layer"] != "13"}
    last = sorted(rows[str(place)] for place in range(9, 13))
    middle = (last[1] * last[2]) ** 0.5
    limit = middle * 10**1.7 if rising else middle / 10**2.5
    far = [n for n, r in rows.items() if n != "0" and (r > limit if rising else r < limit)]
    assert list(finding.layers) == far


def test_numbers_beyond_imagination_are_named() -> None:
    net = make_net(4)
    for parameter in net.parameters():
        parameter.grad = parameter.detach() * 1e20
    (finding,) = measure_gradients(net).findings
    assert "more than a million times their weights" in finding.message
    assert "e+" not in finding.message
    assert finding.value == pytest.approx(1e20, rel=1e-3)


def test_steps_are_judged_by_weights_and_not_by_gains() -> None:
    class Jumping(Toy):
        def configure_optimizers(self) -> Any:
            gains = [p for n, p in self.named_parameters() if n.endswith("norm.weight")]
            rest = [p for n, p in self.named_parameters() if not n.endswith("norm.weight")]
            return torch.optim.SGD([{"params": gains, "lr": 30.0}, {"params": rest}], lr=1e-3)

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(6, 6), nn.LayerNorm(6, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(torch.tanh(self.linear(x)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    net = nn.Sequential(*(Normed() for _ in range(2)), nn.Linear(6, 3))
    monitor = GradientFlowMonitor(every_n_steps=1, granularity="leaf", on_finding="log")
    fit(Jumping(net, batches=12), monitor)
    jumps = [
        update
        for update, layer in zip(
            monitor.history["update_to_weight"], monitor.history["layer"], strict=True
        )
        if layer.endswith("norm")
    ]
    assert max(jumps) > 0.5
    assert monitor.findings == []
