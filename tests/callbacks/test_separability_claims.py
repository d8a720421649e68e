"""What the probe says of a pass is no surer than its samples allow."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_depth.callbacks import LayerSeparabilityProbe
from lightning_depth.callbacks._probe.measures import (
    LayerSample,
    chance_of,
    is_lower_than_by_chance,
    probe_hits,
)
from lightning_depth.callbacks._probe.words import describe_pass
from lightning_depth.functional.law import fit_separation_law
from tests.callbacks.test_separability import TRAIN, Lazy, Net, fit_blocks, loader, mlp, trainer
from tests.callbacks.test_separability_projects import Runs, measured, points


def noise(count: int, classes: int, *shape: int, seed: int = 0) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (count,), generator=generator)
    return DataLoader(TensorDataset(torch.randn(count, *shape, generator=generator), y), 100)


def widening(seed: int) -> nn.Sequential:
    """Layers of more and more channels: their separation falls for want of samples alone."""
    torch.manual_seed(seed)
    widths = (3, 8, 16, 32, 64, 128, 256)
    convolutions = [
        nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())
        for before, after in pairwise(widths)
    ]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 256))


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_claimed_of_an_untrained_network_on_random_labels(seed: int) -> None:
    probe = measured(Runs(widening(seed)), noise(300, 10, 3, 8, 8, seed=seed))
    assert not probe.laws[-1]["stated"]
    assert math.isfinite(probe.laws[-1]["decay_ratio"])  # the numbers are kept
    assert probe.hardest_pairs == []
    told = probe._summary()
    assert told.startswith("On 300 validation samples, from the input to ")
    for claim in ("Each layer", "linear probe's accuracy rises", "linear probe's accuracy falls"):
        assert claim not in told
    assert "the classes are not separated better than by chance" in told
    _, axes = probe.plot()
    panel = axes[0]  # type: ignore[index] # several
    assert panel.get_title() == ""
    assert all(line.get_linestyle() == "-" for line in panel.get_lines())


def test_an_accuracy_on_few_pictures_stays() -> None:
    stays = 0
    for seed in range(8):
        torch.manual_seed(seed)
        told = measured(Runs(mlp(3)), noise(64, 2, 64, seed=seed))._summary()
        assert told.startswith("On 64 validation samples, from the input to ")
        stays += "linear probe's accuracy stays at" in told
    assert stays >= 7  # with 95 % confidence


def test_a_trained_network_has_its_law_with_its_interval() -> None:
    pl.seed_everything(0, verbose=False)
    probe = LayerSeparabilityProbe()
    net = nn.Sequential(
        *(nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()) for _ in range(4)),
        nn.Linear(64, 10),
    )
    trainer(probe, max_epochs=12).fit(Net(net), loader(TRAIN, shuffle=True), loader())
    law = probe.laws[-1]
    depth = probe.history["depth"][-law["num_layers"] :]
    logs = np.log(probe.history["separation"][-law["num_layers"] :])
    line = stats.linregress(depth, logs)
    margin = stats.t.ppf(0.975, len(depth) - 2) * line.stderr
    assert law["low"] == pytest.approx(math.exp(line.slope - margin))
    assert law["high"] == pytest.approx(math.exp(line.slope + margin))
    assert law["stated"]
    low, high = (100 * (1 - law[end]) for end in ("high", "low"))
    assert f"(95 % interval {low:.0f} to {high:.0f} %, R² {law['r_squared']:.2f})." in (
        probe._summary()
    )
    assert "the linear probe's accuracy rises from " in probe._summary()
    assert "by chance" not in probe._summary()
    _, axes = probe.plot()
    assert axes[0].get_title().startswith(f"× {law['decay_ratio']:.2f} a layer (")  # type: ignore[index]


def test_a_network_of_a_few_steps_is_not_said_to_be_at_chance() -> None:
    pl.seed_everything(0, verbose=False)
    probe = LayerSeparabilityProbe()
    trainer(probe).fit(Net(), loader(TRAIN[:256]), loader())
    assert probe.history["linear_probe"][-1] > 0.3  # of ten classes
    assert "by chance" not in probe._summary()


@pytest.mark.parametrize("low_r_squared", [True, False])
def test_a_line_that_is_no_law_is_not_stated(low_r_squared: bool) -> None:
    law = fit_separation_law([1, 2, 3, 4], [8.0, 4.1, 2.0, 1.0])
    law = law._replace(**({"r_squared": 0.7} if low_r_squared else {"high": 1.01}))
    rows = {"layer": ["a", "b"], "num_samples": [9, 9]}
    told = {**law._asdict(), "stated": law.r_squared >= 0.8 and law.high < 1}
    assert "Each layer" not in describe_pass(rows, told, {}, {})


def test_no_block_is_idle_in_a_network_at_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = fit_blocks([Lazy() for _ in range(5)], epochs=1)
    probe._record.standing["separates"] = False
    monkeypatch.setattr(
        "lightning_depth.callbacks.separability.find_idle", lambda *args: ["an idle block"]
    )
    assert probe._conclude(trainer(probe)) == []
    probe._record.standing["separates"] = True
    assert probe._conclude(trainer(probe)) == ["an idle block"]


# Chance


def sample_of(x: Tensor, y: Tensor, classes: int) -> LayerSample:
    places = torch.zeros_like(y)
    for label in range(classes):
        places[y == label] = torch.arange(int((y == label).sum()))
    return LayerSample(x, y, places, classes)


def test_the_labels_of_noise_are_as_far_apart_as_shuffled_ones() -> None:
    lower = 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(200, 30, generator=generator)
        y = torch.randint(5, (200,), generator=generator)
        lower += is_lower_than_by_chance(sample_of(x, y, 5))
    assert lower <= 9  # of 60 at one in 21: more than 9 has a probability of 0.1 %


def test_classes_that_are_apart_are_further_apart_than_shuffled_ones() -> None:
    x, y = points(400, 30, classes=8).tensors
    assert is_lower_than_by_chance(sample_of(x, y, 8))


def test_chance_is_the_share_of_the_commonest_class_of_those_tested() -> None:
    y = torch.tensor([0] * 30 + [1] * 10)
    chance, tested = chance_of(sample_of(torch.randn(40, 3), y, 2))
    assert (chance, tested) == (0.75, 20)
    alone = sample_of(torch.randn(2, 3), torch.arange(2), 2)
    assert math.isnan(chance_of(alone)[0])


def test_always_naming_the_commonest_class_is_no_separation() -> None:
    generator = torch.Generator().manual_seed(3)
    y = (torch.rand(400, generator=generator) < 0.1).long()
    data = DataLoader(TensorDataset(torch.randn(400, 6, generator=generator), y), 100)
    probe = measured(Runs(mlp_of(6)), data)
    assert not probe._record.standing["separates"]
    assert probe._record.standing["chance"] == pytest.approx(1 - y.float().mean().item(), abs=0.01)


def mlp_of(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(4)))


def test_the_error_of_an_accuracy_is_that_of_the_same_samples() -> None:
    probe = measured(Runs(mlp_of(6)), DataLoader(points(200, 6), 50))
    probe._summary()
    finished, names = probe._last, probe._record.names
    assert finished is not None
    labels, places = finished.samples.labels, torch.zeros(200, dtype=torch.long)
    for label in range(3):
        places[labels == label] = torch.arange(int((labels == label).sum()))
    hits = [
        probe_hits(LayerSample(finished.features[name], labels, places, 3)).numpy()
        for name in (names[0], names[-1])
    ]
    expected = stats.tstd(hits[1].astype(float) - hits[0]) / math.sqrt(len(hits[0]))
    # the standard deviation of the sample has one less in its denominator
    expected *= math.sqrt(1 - 1 / len(hits[0]))
    assert probe._record.moves["linear_probe"] == pytest.approx(expected)


ROWS = {"layer": ["input", "net"], "num_samples": [64, 64]}


@pytest.mark.parametrize(
    ("values", "error", "told"),
    [
        ([0.5, 0.47], 0.06, "stays at 0.47 ± 0.1."),
        ([0.5, 0.7], 0.06, "rises from 0.5 to 0.7."),
        ([0.7, 0.5], 0.06, "falls from 0.7 to 0.5."),
        ([0.5, 0.7], 0.2, "stays at 0.7 ± 0.4."),
        ([0.5, 0.5004], 1e-6, "stays at 0.5."),
        ([0.5, 0.7], math.nan, "is 0.5 at first and 0.7 at last."),
    ],
)
def test_a_change_is_told_only_beyond_its_error(
    values: list[float], error: float, told: str
) -> None:
    rows = {**ROWS, "linear_probe": values}
    assert describe_pass(rows, {}, {}, {"linear_probe": error}).endswith(f"accuracy {told}")


def test_a_change_of_the_fisher_ratio_is_told_by_its_logarithm() -> None:
    rows = {**ROWS, "fisher": [0.010, 0.011]}
    assert describe_pass(rows, {}, {}, {"fisher": 0.2}).endswith("ratio stays at 0.011 ± 0.005.")
    assert describe_pass(rows, {}, {}, {"fisher": 0.02}).endswith("rises from 0.01 to 0.011.")


# Numbers that say nothing


def test_classes_of_no_spread_are_named_and_have_no_number() -> None:
    words = torch.arange(90) % 6
    data = DataLoader(TensorDataset(words[:, None].repeat(1, 4), words), 30)
    net = nn.ModuleList([nn.Embedding(6, 8), nn.Linear(8, 8), nn.Linear(8, 6)])

    def call(net: Any, batch: Any) -> None:
        x = net[0](batch[0])
        for layer in list(net)[1:]:
            x = torch.relu(layer(x))

    torch.manual_seed(0)
    for max_samples in (2000, None):
        probe = measured(Runs(net, call), data, labels=1, max_samples=max_samples)
        assert set(probe.history["fisher"]) == {math.inf}
        assert set(probe.history["separation"]) == {0.0}
        told = probe._summary()
        assert "e+" not in told
        assert "inf" not in told
        assert "The classes do not vary within themselves at net.0, net.1, net.2." in told
        probe.plot()[0].savefig("figure.png")


def test_constant_features_are_named_and_no_warning() -> None:
    class Same(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 0 + 0.1

    net = nn.Sequential(nn.Linear(6, 6), Same(6, 6), nn.Linear(6, 3))
    for max_samples in (2000, None):
        probe = measured(Runs(net), DataLoader(points(120, 6), 40), max_samples=max_samples)
        assert [math.isnan(value) for value in probe.history["fisher"]] == [False] * 2 + [True] * 2
        assert "The features are the same for all samples at net.1, net.2." in probe._summary()
        assert probe.findings == []


# Labels that are none


def pixels(void: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (20, 8, 8), generator=generator)
    x = torch.randn(20, 3, 8, 8, generator=generator)
    x += 2 * nn.functional.one_hot(y, 3).movedim(-1, 1)
    y[:, :2] = void
    return DataLoader(TensorDataset(x, y.to(torch.uint8) if void > 0 else y), 5)


def segmenter() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))


class Seeing(Runs):
    def __init__(self, void: int) -> None:
        super().__init__(segmenter())
        self.loss = nn.CrossEntropyLoss(ignore_index=void)


class Calling(Runs):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1].long(), ignore_index=255)


@pytest.mark.parametrize("void", [255, 3, -1])
@pytest.mark.parametrize("max_samples", [2000, None])
def test_pixels_that_the_loss_leaves_out_are_no_class(void: int, max_samples: int | None) -> None:
    kept = measured(Runs(segmenter()), pixels(-100), max_samples=max_samples)
    for module, options in (
        (Seeing(void), {}),
        (Runs(segmenter()), {"ignore_index": void}),
        *([(Calling(segmenter()), {})] if void == 255 else []),
    ):
        probe = measured(module, pixels(void), max_samples=max_samples, **options)
        assert probe.history["separation"] == pytest.approx(kept.history["separation"])
        assert probe._summary().startswith("On 960 validation positions, from the input to ")
        assert probe.hardest_pairs == kept.hardest_pairs


def test_what_is_asked_for_comes_before_what_the_loss_says() -> None:
    with pytest.warns(UserWarning, match="the label 255 counts as a class"):
        probe = measured(Seeing(255), pixels(255), ignore_index=-100)
    assert probe._last is not None
    assert sorted(probe._last.counts) == [0, 1, 2, 255]


def validate_twice(probe: LayerSeparabilityProbe, module: Runs, data: Any) -> None:
    for _ in range(2):
        trainer(probe).validate(module, data, verbose=False)


def test_a_label_far_beyond_the_others_is_told_once() -> None:
    sentence = (
        r"^LayerSeparabilityProbe: the label 255 counts as a class, though the others end at 2; "
        r"if it marks what has no class, leave it out by `ignore_index=255`\.$"
    )
    probe = LayerSeparabilityProbe()
    with pytest.warns(UserWarning, match=sentence) as told:
        validate_twice(probe, Runs(segmenter()), pixels(255))
    assert len([warning for warning in told if "counts as a class" in str(warning.message)]) == 1


@pytest.mark.parametrize("labels", [[0, 255], [0, 128, 255], [3, 980, 981], [0, 1, 2, 9], [1, 2]])
def test_labels_with_gaps_of_their_own_are_no_cause_for_a_notice(labels: list[int]) -> None:
    y = torch.tensor(labels).repeat_interleave(20)
    x = torch.randn(len(y), 6, generator=torch.Generator().manual_seed(0)) + y[:, None] / 9
    measured(Runs(mlp_of(6)), DataLoader(TensorDataset(x, y), 20))


def test_labels_below_zero_are_left_out_with_one_notice() -> None:
    x, y = points(120, 6).tensors
    expected = measured(Runs(mlp_of(6)), DataLoader(TensorDataset(x, y), 40))
    none = torch.where(torch.arange(150) < 120, torch.cat([y, y[:30]]), -1)
    data = DataLoader(TensorDataset(torch.cat([x, x[:30]]), none), 50)
    probe = LayerSeparabilityProbe()
    with pytest.warns(UserWarning, match=r"labels below zero \(-1\) are no classes") as told:
        validate_twice(probe, Runs(mlp_of(6)), data)
    assert len([warning for warning in told if "below zero" in str(warning.message)]) == 1
    found = probe.history["separation"][: len(expected.history["separation"])]
    assert found == pytest.approx(expected.history["separation"])


# States and modules that change


class Growing(Net):
    """Gets a block at the second epoch and loses one at the third."""

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(nn.Linear(64, 32), *(self.block() for _ in range(4)), nn.Linear(32, 10))
        )

    @staticmethod
    def block() -> nn.Sequential:
        return nn.Sequential(nn.Linear(32, 32), nn.ReLU())

    def on_train_epoch_start(self) -> None:
        blocks = list(self.net)  # type: ignore[arg-type] # a Sequential
        if self.current_epoch == 1:
            self.net = nn.Sequential(*blocks[:-1], self.block(), blocks[-1])
        if self.current_epoch == 2:
            self.net = nn.Sequential(*blocks[:2], *blocks[3:])


def test_blocks_that_come_and_go_are_measured_while_they_are_there() -> None:
    probe = LayerSeparabilityProbe()
    trainer(probe, max_epochs=3).fit(Growing(), loader(TRAIN[:256]), loader())
    epochs, layers = probe.history["epoch"], probe.history["layer"]
    by_epoch = [[n for n, e in zip(layers, epochs, strict=True) if e == k] for k in range(3)]
    assert [len(names) for names in by_epoch] == [7, 8, 7]
    assert set(probe._record.evidence) == set(by_epoch[2])
    assert probe._summary().startswith("On 397 validation samples, from the input to net.5, ")
    lines = probe.plot()[1][0].get_lines()  # type: ignore[index] # several
    assert [len(line.get_xdata()) for line in lines[:3]] == [7, 8, 7]


def test_a_second_pass_at_the_same_step_is_a_line_of_its_own() -> None:
    probe = LayerSeparabilityProbe()
    for _ in range(2):
        trainer(probe).validate(Net(), loader(), verbose=False)
    assert {*probe.history["epoch"], *probe.history["step"]} == {0}
    lines = probe.plot()[1][0].get_lines()  # type: ignore[index] # several
    assert [len(line.get_xdata()) for line in lines[:2]] == [5, 5]


def test_a_state_that_is_restored_in_mid_run_is_as_live() -> None:
    live = LayerSeparabilityProbe()
    module = Net()
    trainer(live).validate(module, loader(), verbose=False)
    state = live.state_dict()
    kept = repr(state)
    trainer(live).validate(Net(), loader(TRAIN), verbose=False)
    for _ in range(2):  # as the learning-rate finder does, from one checkpoint
        live.load_state_dict(state)
        assert len(live.laws) == 1
        assert len(live.history["layer"]) == 5
        assert live._conclude(trainer(live)) == []
        trainer(live).validate(Net(), loader(TRAIN), verbose=False)
    assert repr(state) == kept


# Figures


def test_the_figure_of_accuracies_shows_chance() -> None:
    probe = measured(Runs(mlp_of(6)), DataLoader(points(150, 6), 50))
    _, axes = probe.plot()
    accuracy = axes[2]  # type: ignore[index] # several
    assert accuracy.get_ylabel() == "linear probe accuracy"
    chance = accuracy.get_lines()[-1]
    assert set(chance.get_ydata()) == {probe._record.standing["chance"]}
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["chance 0.33"]
    assert axes[0].get_ylabel() == "separation (smaller is better)"  # type: ignore[index] # several
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe.plot()[0].savefig("figure.png")
