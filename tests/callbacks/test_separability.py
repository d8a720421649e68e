"""The separability probe in a Trainer: right numbers, every pass, every form of run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_depth.callbacks import LayerSeparabilityProbe
from lightning_depth.callbacks._probe.figures import draw_profile
from lightning_depth.errors import ConfigurationError, MisuseError
from tests.metrics import reference

X, Y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
X = (X / 16).float()
ORDER = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
TRAIN, VAL = ORDER[:1400], ORDER[1400:]


class Net(pl.LightningModule):
    """A user's module; the batch is whatever `collate` makes of it."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net if net is not None else mlp(3)

    def loss(self, batch: Any) -> Tensor:
        x, y = (batch["image"], batch["label"]) if isinstance(batch, dict) else batch[:2]
        output = self.net(x)
        if y.is_floating_point():
            return (output.mean(1) - y).square().mean()
        return nn.functional.cross_entropy(output, y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.loss(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 2e-3)


def mlp(hidden: int, width: int = 32) -> nn.Sequential:
    sizes = [64] + [width] * hidden
    layers = [
        layer
        for before, after in pairwise(sizes)
        for layer in (nn.Linear(before, after), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 10))


def loader(rows: Tensor = VAL, batch_size: int = 64, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X[rows], Y[rows]), batch_size, **options)


def trainer(probe: pl.Callback, **options: Any) -> pl.Trainer:
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(callbacks=[probe], **{**defaults, **options})


def validate(module: Net, loaders: Any = None, **options: Any) -> LayerSeparabilityProbe:
    probe = LayerSeparabilityProbe(**options)
    trainer(probe).validate(module, loaders or loader(), verbose=False)
    return probe


def rows_of(probe: LayerSeparabilityProbe, column: str) -> dict[str, Any]:
    return dict(zip(probe.history["layer"], probe.history[column], strict=True))


def layers_of(net: nn.Sequential, x: Tensor) -> dict[str, np.ndarray]:
    """The representations by hand: the input and what follows each activation."""
    found = {"input": x.flatten(1).double().numpy()}
    with torch.no_grad():
        for name, module in net.named_children():
            x = module(x)
            if isinstance(module, nn.ReLU):
                found[f"net.{int(name) - 1}"] = x.double().numpy()
    found[f"net.{len(net) - 1}"] = x.double().numpy()
    return found


# Right numbers


@pytest.mark.parametrize("max_samples", [2000, None], ids=["sample", "streaming"])
def test_measures_equal_those_by_hand(max_samples: int | None) -> None:
    module = Net()
    probe = validate(module, max_samples=max_samples, measures=MEASURES, class_pairs=[(4, 9)])
    y = Y[VAL].numpy()
    by_hand = layers_of(module.net, X[VAL])  # type: ignore[arg-type] # a Sequential
    assert list(by_hand) == probe.history["layer"]
    assert probe.history["depth"] == [0, 1, 2, 3, 4]
    assert set(probe.history["num_samples"]) == {len(VAL)}
    for name, x in by_hand.items():
        expected = {
            "separation": reference.separation(x, y),
            "collapse": reference.collapse(x, y),
            "fisher": reference.fisher(x, y),
            "effective_rank": reference.effective_rank(x, y),
            "fisher_4_9": two_class_fisher(x, y, 4, 9),
        }
        found = {column: rows_of(probe, column)[name] for column in expected}
        assert found == pytest.approx(expected, rel=1e-6), name


MEASURES = ("separation", "fisher", "linear_probe", "collapse", "knn", "effective_rank")


def two_class_fisher(x: np.ndarray, y: np.ndarray, a: int, b: int) -> float:
    first, second = x[y == a], x[y == b]
    spread = first.var(0).sum() + second.var(0).sum()
    return float(((first.mean(0) - second.mean(0)) ** 2).sum() / spread)


def test_linear_probe_is_that_of_scikit_learn() -> None:
    probe = validate(Net())
    x = X[VAL].double().numpy()
    accuracies = []
    for seed in range(20):  # halves of each class, drawn anew
        order = np.random.default_rng(seed).permutation(len(x))
        train, test = order[::2], order[1::2]
        alpha = 1e-3 * x[train].var(0).mean() * len(train)
        scores = Ridge(alpha=alpha).fit(x[train], np.eye(10)[Y[VAL][train]]).predict(x[test])
        accuracies.append((scores.argmax(1) == Y[VAL][test].numpy()).mean())
    found = rows_of(probe, "linear_probe")["input"]
    assert found == pytest.approx(np.mean(accuracies), abs=3 * np.std(accuracies))


def test_a_sample_is_balanced_bounded_and_the_same_for_any_batches() -> None:
    module = Net()
    probes = [
        validate(module, loader(batch_size=batch_size), max_samples=100) for batch_size in (16, 397)
    ]
    assert set(probes[0].history["num_samples"]) == {100}
    for column in ("separation", "fisher", "linear_probe"):
        assert probes[0].history[column] == pytest.approx(probes[1].history[column], rel=1e-5)


def test_another_seed_takes_another_sample() -> None:
    module = Net()
    first, second = (validate(module, max_samples=100, seed=seed) for seed in (0, 1))
    assert first.history["separation"] != second.history["separation"]


def test_wide_layers_are_projected_and_the_history_says_so() -> None:
    probe = validate(Net(), max_features=16)
    assert probe.history["num_features"] == [16, 16, 16, 16, 10]
    assert probe.history["projected_from"] == [64, 32, 32, 32, 0]
    assert probe.history["pool"] == ["none"] * 5


def test_the_law_is_a_line_through_log_d() -> None:
    probe = validate(Net())
    depth = probe.history["depth"][1:]
    logs = np.log(probe.history["separation"][1:])
    slope, intercept = np.polyfit(depth, logs, 1)
    law = probe.laws[-1]
    assert law["decay_ratio"] == pytest.approx(math.exp(slope))
    assert law["intercept"] == pytest.approx(intercept)
    assert law["r_squared"] == pytest.approx(np.corrcoef(depth, logs)[0, 1] ** 2)
    assert law["num_layers"] == 4


def test_hardest_pairs_are_those_least_apart_at_the_last_layer() -> None:
    module = Net()
    probe = validate(module)
    x = list(layers_of(module.net, X[VAL]).values())[-1]  # type: ignore[arg-type] # a Sequential
    y = Y[VAL].numpy()
    pairs = {(a, b): two_class_fisher(x, y, a, b) for a in range(10) for b in range(a + 1, 10)}
    expected = sorted(pairs, key=lambda pair: pairs[pair])[:3]
    assert [(pair["first"], pair["second"]) for pair in probe.hardest_pairs] == expected
    assert probe.hardest_pairs[0]["fisher"] == pytest.approx(pairs[expected[0]], rel=1e-5)
    assert probe.hardest_pairs[0]["apart_at"] in probe.history["layer"][1:]


def test_four_and_nine_come_apart_at_every_layer() -> None:
    pl.seed_everything(0, verbose=False)
    probe = LayerSeparabilityProbe(class_pairs=[(4, 9)], every_n_epochs=15)
    module = Net(mlp(3, width=64))
    trainer(probe, max_epochs=15).fit(module, loader(TRAIN, shuffle=True), loader())
    curve = probe.history["fisher_4_9"][:4]  # the input and three hidden layers
    assert curve == sorted(curve)
    assert curve[0] == pytest.approx(1.04, abs=0.01)
    assert curve[3] > 4


# When it measures


def test_measures_each_due_epoch_and_no_sanity_check() -> None:
    probe = LayerSeparabilityProbe(every_n_epochs=2)
    trainer(probe, max_epochs=5).fit(Net(), loader(TRAIN), loader())
    assert sorted(set(probe.history["epoch"])) == [1, 3]


def test_validate_under_inference_mode_and_then_fit() -> None:
    probe = LayerSeparabilityProbe(max_samples=None)
    module = Net()
    trainer(probe).validate(module, loader(), verbose=False)
    trainer(probe, max_epochs=2).fit(module, loader(TRAIN), loader())
    trainer(probe).validate(module, loader(), verbose=False)
    assert len(probe.laws) == 3  # fit begins anew, validate adds to what is there
    assert isinstance(probe.plot()[0], Figure)


def test_one_of_several_validation_loaders_is_measured() -> None:
    module = Net()
    probe = validate(module, [loader(TRAIN), loader()], dataloader_idx=1)
    alone = validate(module, loader())
    assert probe.history["separation"] == pytest.approx(alone.history["separation"], rel=1e-5)


@pytest.mark.parametrize("how", ["module", "submodule", "in-place"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_measures_every_pass_of_a_compiled_model(how: str) -> None:
    module: Any = Net()
    if how == "in-place":
        module.net.compile(backend="eager")
    elif how == "submodule":
        module.net = torch.compile(module.net, backend="eager")
    else:
        module = torch.compile(module, backend="eager")
    probe = LayerSeparabilityProbe()
    trainer(probe, max_epochs=3).fit(module, loader(TRAIN[:128]), loader())
    assert sorted(set(probe.history["epoch"])) == [0, 1, 2]
    assert probe.history["layer"][:5] == ["input", "net.0", "net.2", "net.4", "net.6"]


def test_hooks_are_gone_after_the_pass_and_after_an_error() -> None:
    class Failing(Net):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            raise RuntimeError("as planned")

    module, failing = Net(), Failing()
    validate(module)
    with pytest.raises(RuntimeError, match="as planned"):
        validate(failing)
    for net in (module, failing):
        assert not any(part._forward_hooks for part in net.modules())


# Batches of every form


def as_dict(rows: list[Any]) -> dict[str, Tensor]:
    return {"image": torch.stack([x for x, _ in rows]), "label": torch.stack([y for _, y in rows])}


def with_index(rows: list[Any]) -> list[Tensor]:
    x, y = torch.utils.data.default_collate(rows)
    return [x, y, torch.arange(len(y)) + 7]


@pytest.mark.parametrize("collate", [as_dict, with_index])
def test_labels_are_found_in_batches_of_other_forms(collate: Callable[..., Any]) -> None:
    module = Net()
    probe = validate(module, loader(collate_fn=collate))
    assert probe.history["separation"] == pytest.approx(validate(module).history["separation"])


def with_float_target(rows: list[Any]) -> list[Tensor]:
    x, y = torch.utils.data.default_collate(rows)
    return [x, y / 3.0, torch.arange(len(y))]


def with_unique_target(rows: list[Any]) -> list[Tensor]:
    x, _ = torch.utils.data.default_collate(rows)
    return [x, torch.arange(10)[: len(x)]]


def with_one_label(rows: list[Any]) -> list[Tensor]:
    x, y = torch.utils.data.default_collate(rows)
    return [x, torch.zeros_like(y)]


NOTHING = [
    pytest.param({"collate_fn": with_float_target},
                 "the second element of a batch holds no class numbers", id="regression"),
    pytest.param({"collate_fn": with_unique_target, "batch_size": 10, "rows": VAL[:10]},
                 "no two validation samples have the same label; they look like indices",
                 id="indices"),
    pytest.param({"collate_fn": with_one_label}, "all validation samples have the same label",
                 id="one-class"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "reason"), NOTHING)
def test_where_nothing_can_be_measured_one_sentence_says_so(
    options: dict[str, Any], reason: str
) -> None:
    probe = LayerSeparabilityProbe()
    sentence = f"^LayerSeparabilityProbe measures nothing: {re.escape(reason)}.$"
    with pytest.warns(UserWarning, match=sentence) as told:
        trainer(probe, max_epochs=2).fit(Net(), loader(TRAIN[:64]), loader(**options))
    assert len([warning for warning in told if "measures nothing" in str(warning.message)]) == 1
    assert probe.history == {}
    assert probe.findings == []
    with pytest.raises(MisuseError, match=re.escape(reason)):
        probe.plot()


class Aside(Net):
    """Its validation runs another network than the one that is watched."""

    def __init__(self) -> None:
        super().__init__()
        self.used = [mlp(1)]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.used[0](batch[0])


def test_a_validation_that_never_runs_the_layers_is_said() -> None:
    reason = "the validation step runs none of the watched layers on the labelled samples"
    with pytest.warns(UserWarning, match=reason):
        probe = validate(Aside())
    assert probe.history == {}


class GraphNet(Net):
    """Nodes of several graphs in one batch: layers see nodes, labels belong to graphs."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.net(batch[0].repeat_interleave(3, 0))


def test_graphs_are_not_measured_by_their_nodes() -> None:
    with pytest.warns(UserWarning, match="hand on 39 rows where the batch has 13 labels"):
        assert validate(GraphNet()).history == {}


class Tokens(IterableDataset[Any]):
    """Sequences whose tokens are labelled, without a length."""

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        for _ in range(40):
            tokens = torch.randint(6, (12,), generator=generator)
            labels = tokens % 3
            labels[0] = -100
            yield tokens, labels


class Tagger(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(3)
        )
        self.head = nn.Linear(8, 3)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x = self.embed(batch[0])
        for layer in self.layers:
            x = layer(x)
        nn.functional.cross_entropy(self.head(x).transpose(1, 2), batch[1])


@pytest.mark.parametrize("max_samples", [2000, None], ids=["sample", "streaming"])
def test_labels_of_tokens_are_measured_token_by_token(max_samples: int | None) -> None:
    probe = LayerSeparabilityProbe(max_samples=max_samples)
    trainer(probe).validate(Tagger(), DataLoader(Tokens(), 8), verbose=False)
    assert probe.history["layer"] == ["embed", "layers.0", "layers.1", "layers.2", "head"]
    assert set(probe.history["num_samples"]) == {40 * 11}
    assert set(probe.history["pool"]) == {"position"}


class Segmenter(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, stride=2, padding=1),
            nn.Conv2d(4, 4, 1),
        )

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.net(batch[0])


def test_labels_of_pixels_are_measured_where_they_are() -> None:
    x = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    probe = LayerSeparabilityProbe(max_samples=None)
    data = DataLoader(TensorDataset(x, y), 5)
    trainer(probe).validate(Segmenter(), data, verbose=False)
    assert set(probe.history["num_samples"]) == {640}
    values = x.flatten().double().numpy()[:, None]
    expected = reference.separation(values, y.flatten().numpy())
    assert rows_of(probe, "separation")["net.0"] > 0
    assert probe.history["layer"][0] == "input"
    assert rows_of(probe, "separation")["input"] == pytest.approx(expected, rel=1e-5)


# A second label


@pytest.mark.parametrize("max_samples", [2000, None], ids=["sample", "streaming"])
def test_shares_of_the_variance_of_two_labels(max_samples: int | None) -> None:
    speaker = torch.arange(len(X)) % 3
    x = X + 0.3 * torch.nn.functional.one_hot(speaker, 64)
    data = TensorDataset(x[VAL], Y[VAL], speaker[VAL])
    probe = LayerSeparabilityProbe(labels=1, nuisance=2, max_samples=max_samples)
    trainer(probe).validate(Net(), DataLoader(data, 64), verbose=False)
    values, labels, second = x[VAL].double().numpy(), Y[VAL].numpy(), speaker[VAL].numpy()
    total = ((values - values.mean(0)) ** 2).sum()
    between = nested = 0.0
    for label in range(10):
        of_class = values[labels == label]
        between += len(of_class) * ((of_class.mean(0) - values.mean(0)) ** 2).sum()
        for one in range(3):
            cell = values[(labels == label) & (second == one)]
            nested += len(cell) * ((cell.mean(0) - of_class.mean(0)) ** 2).sum()
    assert rows_of(probe, "label_share")["input"] == pytest.approx(between / total, rel=1e-6)
    assert rows_of(probe, "nuisance_share")["input"] == pytest.approx(nested / total, rel=1e-6)


# Findings and figures


class Lazy(nn.Module):
    """A block that returns what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * self.linear(x)


class Busy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x))


def fit_blocks(blocks: list[nn.Module], epochs: int = 15, **options: Any) -> LayerSeparabilityProbe:
    pl.seed_everything(0, verbose=False)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), *blocks, nn.Linear(32, 10))
    probe = LayerSeparabilityProbe(**options)
    trainer(probe, max_epochs=epochs).fit(Net(net), loader(TRAIN, shuffle=True), loader())
    return probe


def test_blocks_that_add_nothing_are_idle() -> None:
    probe = fit_blocks([Busy(), Busy(), Lazy(), Lazy(), Lazy()])
    (finding,) = probe.findings
    assert finding.kind.value == "IDLE"
    assert finding.severity.value == "info"
    assert finding.layers == ("net.4", "net.5", "net.6")
    assert "From net.3 on nothing separates the classes further" in finding.message
    assert "it is more than 99 % sure" in finding.message
    assert finding.value == pytest.approx(0.0, abs=1e-9)


def test_an_idle_block_on_the_way_is_named() -> None:
    probe = fit_blocks([Busy(), Lazy(), Busy(), Busy()])
    (finding,) = probe.findings
    assert "net.3" in finding.layers
    assert finding.suggestion.startswith("Try the network without")


def test_a_network_that_did_not_train_has_no_idle_blocks() -> None:
    assert fit_blocks([Lazy() for _ in range(5)], epochs=0).findings == []
    untrained = LayerSeparabilityProbe()
    net = nn.Sequential(nn.Linear(64, 32), *(Lazy() for _ in range(5)), nn.Linear(32, 10))
    trainer(untrained, max_epochs=1, limit_train_batches=1).fit(Net(net), loader(TRAIN), loader())
    assert untrained.findings == []


def test_a_healthy_small_network_has_no_idle_blocks() -> None:
    probe = LayerSeparabilityProbe()
    trainer(probe, max_epochs=10).fit(Net(), loader(TRAIN, shuffle=True), loader())
    assert probe.findings == []


def test_the_verdict_survives_a_resume(tmp_path: Path) -> None:
    blocks = [Busy(), Busy(), Lazy(), Lazy(), Lazy()]
    whole = fit_blocks(blocks, epochs=6)
    state = whole.state_dict()
    torch.save(state, tmp_path / "state.pt")
    loaded = LayerSeparabilityProbe()
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert loaded.history == whole.history
    assert loaded.laws == whole.laws
    assert loaded.hardest_pairs == whole.hardest_pairs
    assert loaded._conclude(trainer(loaded)) == whole._conclude(trainer(whole))
    assert isinstance(loaded.plot_classes(), Figure)


def test_figures_show_measures_by_depth_and_classes_by_layer() -> None:
    probe = LayerSeparabilityProbe(class_pairs=[(4, 9)])
    trainer(probe, max_epochs=2).fit(Net(), loader(TRAIN), loader())
    _, axes = probe.plot()
    assert [axis.get_ylabel() for axis in axes] == [  # type: ignore[attr-defined] # several
        "separation (smaller is better)",
        "Fisher ratio",
        "linear probe accuracy",
        "Fisher ratio of 4 and 9",
    ]
    lines = axes[0].get_lines()  # type: ignore[index] # several
    np.testing.assert_allclose(lines[0].get_ydata(), probe.history["separation"][:5])
    panels = probe.plot_classes().get_axes()
    assert [axis.get_title() for axis in panels][:2] == ["input", "net.0"]
    assert len({axis.get_xlim() for axis in panels[:5]}) == 1  # one scale, so that distances tell
    assert [text.get_text() for text in panels[0].get_legend().get_texts()] == ["4", "9"]


@pytest.mark.parametrize(
    "values", [[2e3, 30, 0.7], [1.2, 1.5, 1.9], [0.5, 4, 20]], ids=["four", "less", "two"]
)
def test_labels_of_a_logarithmic_axis_have_room(values: list[float]) -> None:
    table = {"epoch": [0] * 3, "step": [0] * 3, "depth": [0, 1, 2], "separation": values}
    figure, (axis,) = draw_profile(table, {}, ["separation"])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    low, high = axis.get_ylim()
    boxes = sorted(
        (box.y0, box.y1)
        for label in axis.get_yticklabels(which="both")
        if label.get_text() and low <= label.get_position()[1] <= high
        for box in [label.get_window_extent(canvas.get_renderer())]
    )
    assert len(boxes) >= 2
    assert all(before[1] <= after[0] + 1 for before, after in pairwise(boxes))


def test_nothing_to_draw_is_said() -> None:
    probe = LayerSeparabilityProbe()
    trainer(probe, limit_val_batches=0).fit(Net(), loader(TRAIN[:64]), loader())
    sentence = (
        "There is nothing to draw: LayerSeparabilityProbe measured nothing: "
        "no validation pass was due."
    )
    with pytest.raises(MisuseError, match=f"^{re.escape(sentence)}$"):
        probe.plot()


def test_too_few_samples_to_draw_is_said() -> None:
    probe = LayerSeparabilityProbe(class_pairs=[(4, 99)])
    trainer(probe).fit(Net(), loader(TRAIN[:64]), loader())
    with pytest.raises(MisuseError, match=r"^The last pass left too few samples of two classes to"):
        probe.plot_classes()


# Arguments


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"measures": ["seperation"]},
         "`measures` must be one of 'separation', 'fisher', 'linear_probe', 'collapse', 'knn', "
         "'effective_rank', but got 'seperation'. Did you mean 'separation'?"),
        ({"every_n_epochs": 0},
         "`every_n_epochs` must be a whole number of at least 1, but got 0."),
        ({"max_samples": 3}, "`max_samples` must be a whole number of at least 4, but got 3."),
        ({"max_features": 0}, "`max_features` must be a whole number of at least 1, but got 0."),
        ({"class_pairs": [4, 9]},
         "`class_pairs` must be pairs of labels, as in [(4, 9)], but got [4, 9]."),
        ({"class_pairs": [(4, 4)]},
         "`class_pairs` must be pairs of two different labels, but got [(4, 4)]."),
        ({"pool": "max"}, "`pool` must be one of 'mean', 'class_token', 'flatten', but got 'max'. "
         "Did you mean 'mean'?"),
        ({"granularity": "blocks"},
         "`granularity` must be one of 'block', 'leaf', but got 'blocks'. Did you mean 'block'?"),
        ({"dataloader_idx": -1},
         "`dataloader_idx` must be a whole number of at least 0, but got -1."),
        ({"seed": 0.5}, "`seed` must be a whole number of at least 0, but got 0.5."),
        ({"seed": 2**63},
         "`seed` must be a whole number below 2**63, but got 9223372036854775808."),
        ({"prefix": ""},
         "`prefix` must be the first part of the logged keys, a word, but got ''."),
        ({"measures": "fisher"},
         "`measures` must be a list of at least one name, as in ['fisher'], but got 'fisher'."),
        ({"measures": ()},
         "`measures` must be a list of at least one name, as in ['fisher'], but got ()."),
        ({"class_pairs": [(1.5, 2.5)]},
         "`class_pairs` must be pairs of labels, as in [(4, 9)], but got [(1.5, 2.5)]."),
        ({"labels": ["y"]}, "`labels` must be a key, a place or a callable that is handed the "
         "batch, but got ['y']."),
        ({"nuisance": 1.5}, "`nuisance` must be a key, a place or a callable that is handed the "
         "batch, but got 1.5."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_wrong_arguments_get_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        LayerSeparabilityProbe(**options)


def test_a_pattern_that_matches_nothing_is_refused_before_training() -> None:
    probe = LayerSeparabilityProbe(include="nets.*")
    with pytest.raises(ConfigurationError, match=r"'nets\.\*' matches none"):
        trainer(probe).fit(Net(), loader(TRAIN), loader())


def test_features_that_are_not_finite_are_nan_and_no_error() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * math.nan

    net = nn.Sequential(nn.Linear(64, 32), Broken(), Broken(), nn.Linear(32, 10))
    with pytest.warns(UserWarning, match="not measured, as their features are not finite: net.1, "):
        probe = validate(Net(net))
    assert "Not measured, as their features are not finite: net.1, net.2, net.3." in (
        probe._summary()
    )
    found = rows_of(probe, "separation")
    assert [math.isnan(value) for value in found.values()] == [False, False, True, True, True]
    assert math.isnan(probe.laws[-1]["decay_ratio"])


def test_the_summary_says_which_way_it_goes() -> None:
    pl.seed_everything(0, verbose=False)
    probe = LayerSeparabilityProbe()
    trainer(probe, max_epochs=5).fit(Net(), loader(TRAIN, shuffle=True), loader())
    fisher, accuracy = (rows_of_last(probe, name) for name in ("fisher", "linear_probe"))
    error = 1.96 * probe._record.moves["linear_probe"]
    change = accuracy[-1] - accuracy[0]
    verb = "rises" if change > 0 else "falls"
    moves = f"{verb} from {accuracy[0]:.2g} to {accuracy[-1]:.2g}"
    stays = f"stays at {accuracy[-1]:.2g} ± {error:.1g}"
    assert probe._summary().startswith(
        "On 397 validation samples, from the input to net.6, the Fisher ratio rises from "
        f"{fisher[0]:.2g} to {fisher[-1]:.2g} and the linear probe's accuracy "
        f"{moves if abs(change) > error else stays}."
    )


def rows_of_last(probe: LayerSeparabilityProbe, column: str) -> list[float]:
    values: list[float] = probe.history[column][-5:]
    return values


class Pictures(IterableDataset[Any]):
    """Pictures of several sizes, those of a batch alike."""

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        for size in (8, 12, 10):
            y = torch.arange(20) % 4
            x = torch.randn(20, 1, size, size, generator=generator) + y[:, None, None, None]
            yield x, y


@pytest.mark.parametrize("max_samples", [2000, None], ids=["sample", "streaming"])
def test_pictures_of_several_sizes_have_no_input_layer(max_samples: int | None) -> None:
    probe = LayerSeparabilityProbe(max_samples=max_samples)
    data = DataLoader(Pictures(), batch_size=None)
    trainer(probe).validate(Segmenter(), data, verbose=False)
    assert probe.history["layer"] == ["net.0", "net.1", "net.2"]
    assert probe.history["depth"] == [1, 2, 3]
    assert set(probe.history["num_samples"]) == {60}
