"""Class separability layer by layer, measured on the validation pass that happens anyway.

The picture behind it is the best known of why depth helps: classes that lie on top of each other
at the input come apart layer by layer (Alain and Bengio 2016, arXiv 1610.01644; He and Su 2022,
arXiv 2210.17020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_depth.callbacks._base import DepthCallback, OnFinding
from lightning_depth.callbacks._ignored import find_ignore_index
from lightning_depth.callbacks._probe.batches import LabelReader
from lightning_depth.callbacks._probe.collector import Collector, ProbeOptions
from lightning_depth.callbacks._probe.eager import enter_eager, leave_eager
from lightning_depth.callbacks._probe.features import Pool
from lightning_depth.callbacks._probe.figures import draw_panels, draw_profile
from lightning_depth.callbacks._probe.measures import Measure
from lightning_depth.callbacks._probe.notes import QUIET, why_unmeasurable
from lightning_depth.callbacks._probe.passes import FinishedPass, finish_pass
from lightning_depth.callbacks._probe.record import ProbeRecord
from lightning_depth.callbacks._probe.results import (
    Question,
    pair_column,
    picture,
    scalars_of,
    summarise,
)
from lightning_depth.callbacks._probe.runs import (
    check_label,
    check_measures,
    check_pairs,
    check_seed,
    check_where,
    count_repeated,
    count_unique,
    from_rank_zero,
    is_last_pass,
    why_no_loader,
)
from lightning_depth.callbacks._probe.verdicts import find_idle
from lightning_depth.callbacks._probe.weighing import weigh
from lightning_depth.callbacks._probe.words import describe_pass
from lightning_depth.errors import MisuseError, check_choice, check_count
from lightning_depth.findings import Finding
from lightning_depth.layers import Granularity, Layer, select_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LayerSeparabilityProbe"]


class LayerSeparabilityProbe(DepthCallback):
    """Measure how well each layer separates the classes, without an extra forward pass.

    Every block of any LightningModule is watched during validation, and the flattened input as
    layer 0. Per layer: the separation of He and Su (2022, arXiv 2210.17020), the Fisher ratio,
    the accuracy of a linear probe. Over the layers: the law of data separation, the pairs of
    classes that are hardest, and, at the end of training, blocks that add nothing (IDLE). None of
    these three is said of a network that does not separate the classes better than chance.

    Args:
        granularity: "block" for blocks, "leaf" for every module that owns weights.
        include: Glob patterns of the layers to watch; all by default.
        exclude: Glob patterns of layers to leave out.
        every_n_epochs: Measure in the validations of each n-th epoch.
        max_samples: Validation samples measured, a seeded class-balanced choice; None measures
            all of them, by sums that need no more memory for more samples.
        max_features: Wider layers are projected to this width by a sparse seeded projection.
        measures: Any of "separation", "fisher", "linear_probe", "collapse" (NC1), "knn",
            "effective_rank".
        class_pairs: Pairs of labels whose own Fisher curve is kept, as in ``[(4, 9)]``.
        labels: Where a batch holds the labels: a key, a place, or a callable that is handed the
            batch; default: ``(x, y)`` and usual names.
        nuisance: Where a batch holds a second label, say the speaker; the share of the variance
            that it has within a class is kept beside that of the classes.
        pool: How maps and tokens become one row a sample: "mean" over positions, "class_token"
            (the first token), "flatten", or a callable.
        ignore_index: A label that marks what has no class, as void pixels; by default the one
            that the module's loss leaves out. Labels below zero are always left out.
        dataloader_idx: Number of the validation loader that is measured.
        seed: Which samples and which projection.
        log_layers: Whether every layer's measures are logged too.
        prefix: First part of the logged keys.
        on_finding: What happens when something is found, see ``DepthCallback``.
        figures: Whether figures are logged, or written where no logger takes them: at most one an
            epoch and for at most a hundredth of the time, and one at the end.

    Raises:
        ConfigurationError: An argument cannot be used as given, or a pattern matches no layer.

    Example:
        >>> probe = LayerSeparabilityProbe(class_pairs=[(4, 9)])
        >>> probe.max_samples
        2000
    """

    def __init__(
        self,
        granularity: Granularity = "block",
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        every_n_epochs: int = 1,
        max_samples: int | None = 2000,
        max_features: int = 512,
        measures: Sequence[Measure] = ("separation", "fisher", "linear_probe"),
        class_pairs: Sequence[tuple[int, int]] = (),
        *,
        labels: str | int | LabelReader | None = None,
        nuisance: str | int | LabelReader | None = None,
        pool: Pool = "mean",
        ignore_index: int | None = None,
        dataloader_idx: int = 0,
        seed: int = 0,
        log_layers: bool = False,
        prefix: str = "separability",
        on_finding: OnFinding = "warn",
        figures: bool = True,
    ) -> None:
        super().__init__(prefix=prefix, on_finding=on_finding, figures=figures)
        check_choice("granularity", granularity, ("block", "leaf"))
        self.granularity = granularity
        self.include = include
        self.exclude = exclude
        self.every_n_epochs = check_count("every_n_epochs", every_n_epochs)
        self.max_samples = (
            None if max_samples is None else check_count("max_samples", max_samples, 4)
        )
        self.max_features = check_count("max_features", max_features)
        self.measures = check_measures(measures)
        self.class_pairs = check_pairs(class_pairs)
        self.labels = check_where("labels", labels)
        self.nuisance = check_where("nuisance", nuisance)
        if not callable(pool):
            check_choice("pool", pool, ("mean", "class_token", "flatten"))
        self.pool = pool
        self.ignore_index = check_label("ignore_index", ignore_index)
        self.dataloader_idx = check_count("dataloader_idx", dataloader_idx, 0)
        self.seed = check_seed(seed)
        self.log_layers = log_layers
        self._collector: Collector | None = None
        self._last: FinishedPass | None = None
        self._told: set[str] = set()
        self._record = ProbeRecord()

    # What users read.

    @property
    def laws(self) -> list[dict[str, float]]:
        """The law of data separation of each pass: epoch, step, decay ratio, R², layers.

        ``low`` and ``high`` are the 95 % interval of the decay ratio. ``stated`` is whether the
        numbers are of a law: the classes are separated better than chance, R² is at least 0.8 and
        the interval lies below 1.
        """
        self._check_ran("laws")
        return [dict(law) for law in self._record.laws]

    @property
    def hardest_pairs(self) -> list[dict[str, Any]]:
        """The pairs of classes least apart at the last layer of the last pass, hardest first.

        There are none where the classes are not separated better than chance.
        """
        self._check_ran("hardest_pairs")
        return [dict(pair) for pair in self._record.pairs]

    def plot(self) -> tuple[Figure, Axes]:
        """Draw each measure over depth, from the first to the last pass.

        Returns:
            The figure and its axes, one a measure.
        """
        figure, axes = draw_profile(
            self._measured(), self._record.law, self._columns(), self._chance
        )
        return figure, axes  # type: ignore[return-value] # as torchmetrics does: several

    def plot_classes(self) -> Figure:
        """Draw the classes of the last pass in the plane, layer by layer.

        With ``class_pairs`` it is the first pair that is shown.

        Returns:
            The figure.
        """
        self._measured()
        panels = self._picture()
        if not panels:
            raise MisuseError(
                "The last pass left too few samples of two classes to draw."
                if self._last is not None
                else "The samples of the last pass are gone, as they do not travel with a "
                "checkpoint, a pickle or a child process: call `trainer.validate` with this probe."
            )
        return draw_panels(panels)

    # Hooks.

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse patterns that match nothing before any training."""
        self._select(pl_module)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hang the hooks on the layers."""
        if self._is_due(trainer):
            self._open(trainer, pl_module)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Read the labels."""
        if self._collector is not None and dataloader_idx == self.dataloader_idx:
            self._collector.begin(batch)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Close the batch."""
        if self._collector is not None:
            self._collector.end()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure what the pass left."""
        if self._collector is not None:
            collector = self._collector
            self._detach()
            if self._agree(trainer):
                self._measure(trainer, pl_module, collector)

    # What the base asks for.

    def _conclude(self, trainer: pl.Trainer) -> list[Finding]:
        return from_rank_zero(trainer, self._judge)

    def _judge(self) -> list[Finding]:
        record = self._record
        self._weigh()
        if not record.standing.get("separates", True):
            return []
        return find_idle(record.evidence, record.names, record.blocks)

    def _summary(self) -> str:
        record = self._record
        if record.reason:
            return f"LayerSeparabilityProbe measured nothing: {record.reason}."
        if not record.laws:
            return "LayerSeparabilityProbe measured nothing: no validation pass was due."
        self._weigh()
        notes = [f"{note[0].upper()}{note[1:]}." for note in record.notes.values()]
        told = describe_pass(self._last_rows(), record.law, record.standing, record.moves)
        return " ".join([told, *notes])

    def _detach(self) -> None:
        if self._collector is not None:
            self._collector.close()
            self._collector = None
            leave_eager()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the features of the last pass."""
        return {**super().__getstate__(), "_last": None, "_collector": None}

    def _reset(self) -> None:
        super()._reset()
        self._record, self._last, self._told = ProbeRecord(), None, set()

    def _extra_state(self) -> dict[str, Any]:
        return self._record.state_dict()

    def _load_extra_state(self, state: Mapping[str, Any]) -> None:
        self._record = ProbeRecord.from_state(state)
        self._last = None  # of another pass than the state

    # Inside.

    def _select(self, pl_module: pl.LightningModule) -> list[Layer]:
        return select_layers(pl_module, self.granularity, self.include, self.exclude)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        if trainer.sanity_checking:
            return False
        fitting = trainer.state.fn == "fit"
        return not fitting or (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _open(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        options = ProbeOptions(
            self.max_samples, self.max_features, self.pool, self.labels, self.nuisance, self.seed,
            find_ignore_index(pl_module) if self.ignore_index is None else self.ignore_index,
        )  # fmt: skip
        layers = self._select(pl_module)
        self._record.blocks = [layer.name for layer in layers if layer.role == "block"]
        unique = count_unique(trainer, self.dataloader_idx)
        self._last = None  # its features would lie beside those of this pass
        self._collector = Collector(layers, pl_module, options, trainer.global_rank, unique)
        enter_eager()  # before anything that may fail: whoever detaches leaves it again
        self._collector.open()

    def _measure(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, collector: Collector
    ) -> None:
        # from here on every rank must take part
        finished = finish_pass(collector, trainer.world_size, pl_module.device)
        result = from_rank_zero(trainer, lambda: self._evaluate(trainer, finished))
        if reason := result.get("reason"):
            self._give_up(reason)
            return
        self._keep_result(trainer, result)
        scalars = scalars_of(result, self.measures, each_layer=self.log_layers)
        self._log(pl_module, scalars, epoch_end=True)
        self._log_figure(trainer, "profile", self._draw_all)

    def _evaluate(self, trainer: pl.Trainer, finished: FinishedPass) -> dict[str, Any]:
        if reason := why_no_loader(trainer, self.dataloader_idx) or why_unmeasurable(finished):
            return {"reason": reason}
        names = [name for name, mask in finished.filled.items() if bool(mask.any())]
        question = Question(self.measures, self.class_pairs, self.nuisance is not None)
        result = summarise(finished, names, question)
        self._last = finished
        if is_last_pass(trainer):
            result["weighed"] = weigh(finished, result["rows"], self.class_pairs)
        return result

    def _keep_result(self, trainer: pl.Trainer, result: Mapping[str, Any]) -> None:
        when = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        repeated = count_repeated(trainer, self.dataloader_idx)
        standing = result["standing"]
        self._history.append(
            **when, **result["rows"], repeated=repeated,
            chance=standing["chance"], above_chance=standing["separates"],
        )  # fmt: skip
        self._record.keep(when, result)
        for kind, note in result["notes"].items():
            if kind not in QUIET:
                self._tell_once(kind, f"LayerSeparabilityProbe: {note}.")

    def _weigh(self) -> None:
        """Find what the verdict needs where the last pass was not known to be the last."""
        if not self._record.evidence and self._last is not None:
            self._record.weighed(weigh(self._last, self._last_rows(), self.class_pairs))

    def _last_rows(self) -> dict[str, list[Any]]:
        count = len(self._record.names)
        return {name: column[-count:] for name, column in self._history.table().items()}

    def _picture(self) -> dict[str, Any]:
        if not self._record.panels and self._last is not None:
            self._record.panels = picture(self._last, self._record.names, self.class_pairs)
        return self._record.panels

    def _give_up(self, reason: str) -> None:
        self._record.reason = reason
        self._tell_once("nothing", f"LayerSeparabilityProbe measures nothing: {reason}.")

    def _tell_once(self, kind: str, sentence: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            rank_zero_warn(sentence)

    @property
    def _chance(self) -> float | None:
        return self._record.standing.get("chance")

    def _columns(self) -> list[str]:
        return [*self.measures, *(pair_column(pair) for pair in self.class_pairs)]

    def _measured(self) -> dict[str, list[Any]]:
        table = self.history
        if not table:
            raise MisuseError(f"There is nothing to draw: {self._summary()}")
        return table

    def _draw_all(self) -> Figure:
        table = self._measured()
        panels = self._picture() or None
        return draw_profile(table, self._record.law, self._columns(), self._chance, panels)[0]
