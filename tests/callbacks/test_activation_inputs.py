"""What a layer is given decides what may be said of what it makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_depth.callbacks import ActivationMonitor, measure_activations
from lightning_depth.callbacks._rows import count_samples
from lightning_depth.functional.activations import code_features, gram_matrix, rank_of_gram
from tests.callbacks.toy import Batch, Block, Toy, fit, rows


def words(samples: int = 32, length: int = 12, known: int = 20) -> Tensor:
    return torch.randint(known, (samples, length), generator=torch.Generator().manual_seed(0))


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Summed(nn.Module):
    """A sequence to which something that is the same for all samples is added."""

    def __init__(self, part: nn.Module, ask: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.words, self.part, self.ask = nn.Embedding(20, 16), part, ask
        self.body, self.head = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(self.words(x) + self.ask(self.part, x))))


class Query(nn.Module):
    """Learned vectors that depend on nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(noise(1, 1, 16))

    def forward(self, samples: int) -> Tensor:
        return self.weight.expand(samples, 12, 16)


def positions(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1]).expand_as(x)


def time_step(x: Tensor) -> Tensor:
    return torch.full((len(x), 1, 8), 0.3)


GIVEN_THE_SAME: dict[str, tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]] = {
    "positions": (nn.Embedding(12, 16), lambda part, x: part(positions(x))),
    "positions in one row": (nn.Embedding(12, 16), lambda part, x: part(positions(x)[:1])),
    "counted positions": (
        nn.Linear(1, 16),
        lambda part, x: part(positions(x)[..., None].float()),
    ),
    "learned queries": (Query(), lambda part, x: part(len(x))),
    "queries by keyword": (Query(), lambda part, x: part(samples=len(x))),
    "a layer on learned queries": (
        nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)),
        lambda part, x: part(torch.ones(len(x), 12, 16)),
    ),
    "a constant time step": (nn.Linear(8, 16), lambda part, x: part(time_step(x))),
    "a constant class": (
        nn.Embedding(3, 16),
        lambda part, x: part(torch.zeros(len(x), 1, dtype=torch.long)),
    ),
}


@pytest.mark.parametrize("name", GIVEN_THE_SAME)
def test_what_is_given_the_same_for_all_samples_has_not_collapsed(name: str) -> None:
    torch.manual_seed(0)
    net, x = Summed(*GIVEN_THE_SAME[name]), words()
    seen = measure_activations(net, lambda: net(x), granularity="leaf")
    assert [found.kind.value for found in seen.findings] == []


def test_a_net_that_sees_one_sample_again_and_again_has_not_collapsed() -> None:
    net = nn.Sequential(*(Block(16, nn.Tanh()) for _ in range(4)))
    x = noise(1, 16).expand(32, 16)
    assert measure_activations(net, lambda: net(x)).findings == ()


class Scalars(nn.Module):
    """Every column has a layer of its own."""

    def __init__(self, columns: int = 4, width: int = 8) -> None:
        super().__init__()
        self.each = nn.ModuleList(nn.Linear(1, width) for _ in range(columns))
        self.body, self.head = nn.Linear(columns * width, 32), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [layer(x[:, place : place + 1]) for place, layer in enumerate(self.each)]
        return self.head(torch.relu(self.body(torch.cat(parts, 1))))


def test_one_number_gives_one_direction() -> None:
    net, x = Scalars(), 0.1 * noise(32, 4)
    seen = measure_activations(net, lambda: net(x))
    assert [row["effective_rank"] for row in seen.layers[:4]] == pytest.approx([1.0] * 4, abs=0.02)
    assert seen.findings == ()


def test_two_classes_give_one_direction() -> None:
    net = nn.Sequential(nn.Embedding(2, 16), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    with torch.no_grad():
        net[0].weight.add_(4.0)  # type: ignore[operator,union-attr]
    x = (torch.arange(32) % 2).long()
    assert measure_activations(net, lambda: net(x), granularity="leaf").findings == ()


def test_an_embedding_of_one_direction_has_collapsed() -> None:
    net = nn.Sequential(nn.Embedding(20, 16), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    with torch.no_grad():
        net[0].weight.copy_(1.0 + 0.01 * noise(20, 1))  # type: ignore[operator,union-attr]
    x = words(32, 1)[:, 0]
    (found,) = measure_activations(net, lambda: net(x), granularity="leaf").findings
    assert (found.kind.value, found.layers) == ("COLLAPSED", ("0",))


def test_words_are_as_far_apart_as_their_one_hot_codes() -> None:
    x = words(16, 12)
    one_hot = F.one_hot(x, 20).flatten(1).float()
    wanted, found = gram_matrix(one_hot), gram_matrix(code_features(x))
    torch.testing.assert_close(found, wanted)


def test_a_head_of_one_unit_has_not_collapsed() -> None:
    class Marks(nn.Module):
        """A number for every position, as in segmentation or scoring."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 1)
            self.behind = nn.Linear(1, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.behind(self.head(torch.relu(self.body(x))))

    net = Marks()
    with torch.no_grad():
        net.head.weight.mul_(1e-8)
        net.head.bias.fill_(1.0)
    x = noise(32, 12, 8)
    assert measure_activations(net, lambda: net(x), granularity="leaf").findings == ()


@pytest.mark.parametrize("beta", [0.0, 1e-20], ids=["zero", "next to zero"])
def test_a_norm_whose_scale_starts_at_zero_has_not_collapsed(beta: float) -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(16, 16), nn.BatchNorm1d(16)
            nn.init.constant_(self.norm.weight, beta)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.norm(self.linear(x))

    net = nn.Sequential(*(Branch() for _ in range(4)), nn.Linear(16, 3))
    x = noise(32, 16)
    assert measure_activations(net, lambda: net(x), granularity="leaf").findings == ()


class Layered(Toy):
    """Blobs in a wider room, for nets of 16 features."""

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        return super().training_step((batch[0].repeat(1, 3)[:, :16], batch[1]), batch_idx)


def test_layers_that_start_at_zero_have_not_collapsed_in_training() -> None:
    torch.manual_seed(0)
    zero = nn.Linear(16, 16)
    nn.init.zeros_(zero.weight)
    nn.init.zeros_(zero.bias)
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), zero, nn.Linear(16, 3))
    for make in (torch.optim.SGD, torch.optim.Adam):
        seen = ActivationMonitor("leaf", every_n_steps=1, min_samples=8, on_finding="log")
        fit(Layered(net, lambda parameters, make=make: make(parameters, lr=1e-2), 20), seen)
        assert "COLLAPSED" not in [found.kind.value for found in seen.findings]


def flat(layer: nn.Module, *, constant: bool) -> None:
    """One output for all samples, or one direction."""
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(0 * layer.weight if constant else 0.01 * layer.weight[:1])
        layer.bias.fill_(1.0)


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "one direction"])
def test_only_the_layer_where_variety_is_lost_is_named(constant: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(Block(16, nn.Tanh()) for _ in range(8)))
    flat(net[2].linear, constant=constant)  # type: ignore[union-attr,arg-type]
    x = noise(64, 16)
    (found,) = measure_activations(net, lambda: net(x)).findings
    assert (found.kind.value, found.layers) == ("COLLAPSED", ("2",))
    assert found.value < found.threshold


def test_variety_that_is_lost_little_by_little_is_missed_where_it_is_gone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(Block(16, nn.Tanh()) for _ in range(12)))
    directions = torch.linalg.qr(noise(16, 16)).Q
    with torch.no_grad():
        for block in net:
            block.linear.weight.copy_(  # type: ignore[union-attr,operator]
                directions @ torch.diag(0.35 ** torch.arange(16.0)) @ directions.T
            )
            block.linear.bias.copy_(directions[:, 0])  # type: ignore[union-attr,operator]
    x = noise(64, 16)
    seen = measure_activations(net, lambda: net(x))
    (found,) = seen.findings
    assert found.kind.value == "COLLAPSED"
    assert len(found.layers) == 1
    ranks = {row["layer"]: row["effective_rank"] for row in seen.layers}
    narrow = [name for name, rank in ranks.items() if rank < found.threshold]
    assert found.layers[0] == narrow[0] != "0"


def test_signals_far_below_one_have_not_collapsed() -> None:
    net = nn.Sequential(*(Block(16, nn.Tanh()) for _ in range(4)))
    for block in net:
        nn.init.zeros_(block.linear.bias)  # type: ignore[union-attr,arg-type]
    x = 1e-24 * noise(32, 16)
    assert measure_activations(net, lambda: net(x)).findings == ()


def test_the_lowest_rank_is_that_of_layers_that_can_vary() -> None:
    class Columns(Toy):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            return self.net(batch[0][:, :4]).square().mean()

    seen = ActivationMonitor(every_n_steps=1)
    trainer = fit(Columns(Scalars()), seen)
    body = rows(seen.history, "effective_rank")[-1]["net.body"]
    assert body > 1.5
    assert trainer.callback_metrics["activations/effective_rank"] == pytest.approx(body)


class Decoder(nn.Module):
    """One vector a sample, repeated over time, with time first or second."""

    def __init__(self, time_first: bool) -> None:
        super().__init__()
        self.time_first = time_first
        self.pre = nn.Sequential(*(Block(16, nn.Tanh()) for _ in range(3)))
        self.rnn = nn.GRU(16, 16, batch_first=not time_first)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.expand(6, *x.shape) if self.time_first else x[:, None].expand(-1, 6, -1)
        hidden, _ = self.rnn(self.pre(steps))
        return self.head(hidden[-1] if self.time_first else hidden[:, -1])


@pytest.mark.parametrize("size", [8, 32], ids=["more samples", "many more samples"])
def test_time_steps_are_not_taken_for_samples(size: int) -> None:
    torch.manual_seed(0)
    first, second = Decoder(True), Decoder(False)
    second.load_state_dict(first.state_dict())
    x = noise(size, 16)
    tables = []
    for net in (first, second):
        seen = measure_activations(net, lambda net=net: net(x))  # type: ignore[misc]
        assert seen.findings == ()
        tables.append([(row["effective_rank"], row["variety"]) for row in seen.layers])
    for one, other in zip(*tables, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    outputs = (
        first.pre[0].linear(x).tanh().detach()[:16]
    )  # by hand: the same at each of the six steps
    centered = outputs - outputs.mean(0)
    wanted = (centered.square().sum() / outputs.square().sum()).item()
    assert tables[0][0][1] == pytest.approx(wanted, rel=1e-4)


def test_nothing_is_said_where_samples_and_time_steps_are_as_many() -> None:
    net, x = Decoder(True), noise(6, 16)
    seen = measure_activations(net, lambda: net(x))
    variety = {row["layer"]: row["variety"] for row in seen.layers}
    assert math.isnan(variety["pre.0"])
    assert variety["rnn"] > 0
    assert seen.findings == ()


def test_windows_of_a_sample_are_no_samples() -> None:
    """The corners of pictures are alike, the pictures are not."""
    net = nn.Sequential(
        nn.Unflatten(1, (4, 16)), nn.Flatten(0, 1), *(nn.Linear(16, 16) for _ in range(3)),
    )  # fmt: skip
    x = torch.cat([torch.ones(32, 48), noise(32, 16)], 1)
    seen = measure_activations(net, lambda: net(x))
    hidden = net[2](x.view(32, 4, 16)).detach()[:16].flatten(1)
    wanted = gram_matrix(hidden)
    assert seen.layers[0]["variety"] == pytest.approx(wanted.trace().item(), rel=1e-4)
    rank = rank_of_gram(wanted[None]).item()
    assert seen.layers[0]["effective_rank"] == pytest.approx(rank, rel=1e-3)


@pytest.mark.parametrize(
    ("shapes", "time_first", "expected", "samples"),
    [
        ([(32, 5), (32,)], False, None, 32),
        ([(6, 32, 5), (32,)], True, None, 32),
        ([(6, 32), (6, 32)], True, None, None),
        ([(6, 32), (6, 32)], True, 32, 32),
        ([(32, 6), (32, 6)], True, 32, 32),
        ([], False, None, None),
    ],
    ids=["plain", "time first", "either", "told by the loader", "time second", "nothing"],
)
def test_samples_of_a_batch_are_counted(
    shapes: list[tuple[int, ...]], time_first: bool, expected: int | None, samples: int | None
) -> None:
    batch = {"x": tuple(torch.zeros(shape).long() for shape in shapes), "name": "batch"}
    assert count_samples(batch, expected, time_may_lead=time_first) == samples


def test_a_recurrent_net_that_forgets_has_no_collapsed_head() -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.RNN(4, 16, batch_first=True), nn.Linear(16, 16)
            self.out = nn.Linear(16, 3)
            with torch.no_grad():
                self.rnn.weight_hh_l0.copy_(0.3 * torch.eye(16))

        def forward(self, x: Tensor) -> Tensor:
            steps = F.pad(x[:, None, :4], (0, 0, 0, 199))
            return self.out(torch.relu(self.head(self.rnn(steps)[0][:, -1])))

    net, x = Forgetful(), noise(32, 6)
    assert measure_activations(net, lambda: net(x)).findings == ()


def test_of_several_inputs_the_one_that_goes_on_is_looked_at() -> None:
    """A class token that is the same for all samples, and whose blocks start next to identity."""

    class Ask(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x: Tensor, token: Tensor) -> Tensor:
            return token + 1e-6 * self.linear(x.mean(1, keepdim=True))

    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.token = nn.Linear(16, 16), nn.Parameter(noise(1, 1, 16))
            self.asks = nn.ModuleList(Ask() for _ in range(3))
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x, token = self.stem(x), self.token.expand(len(x), 1, 16)
            for ask in self.asks:
                token = ask(x, token)
            return self.head(token[:, 0])

    net, x = Asking(), noise(32, 12, 16)
    assert measure_activations(net, lambda: net(x)).findings == ()


def test_a_gate_that_starts_open_has_not_collapsed() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.gate = nn.Linear(16, 16), nn.Linear(16, 16)
            self.narrow = nn.Linear(16, 16)
            nn.init.normal_(self.gate.weight, std=1e-6)
            nn.init.ones_(self.gate.bias)

        def forward(self, x: Tensor) -> Tensor:
            x = self.wide(x)
            return self.narrow(x * self.gate(x))

    net, x = nn.Sequential(*(Gate() for _ in range(3)), nn.Linear(16, 3)), noise(32, 16)
    assert measure_activations(net, lambda: net(x), granularity="leaf").findings == ()


def test_variety_that_goes_while_directions_stay_is_missed_in_training() -> None:
    """What is left is a ten-thousandth of the mean and less, in as many directions as before."""
    torch.manual_seed(0)
    net = nn.Sequential(*(Block(16, nn.Identity()) for _ in range(8)), nn.Linear(16, 3))
    with torch.no_grad():
        for block in net[:8]:  # type: ignore[union-attr]
            block.linear.weight.copy_(0.1 * torch.eye(16))
            block.linear.bias.fill_(1.0)
    net.requires_grad_(False)
    net[-1].requires_grad_(True)
    seen = ActivationMonitor(every_n_steps=1, on_finding="log")
    fit(Layered(net), seen)
    (found,) = seen.findings
    varieties = rows(seen.history, "variety")[0]
    assert found.layers == (next(name for name in varieties if varieties[name] < 1e-9),)


def test_variety_that_sigmoids_take_is_missed_once() -> None:
    torch.manual_seed(0)
    parts = [part for _ in range(20) for part in (nn.Linear(64, 64), nn.Sigmoid())]
    net, x = nn.Sequential(*parts, nn.Linear(64, 10)), noise(64, 64)
    seen = measure_activations(net, lambda: net(x))
    (found,) = seen.findings
    constant = [row["layer"] for row in seen.layers if row["variety"] < 1e-9]
    assert found.layers == (constant[0],)
