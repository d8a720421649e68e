"""How well classes are separated, from one state of class counts, sums and second moments."""

from __future__ import annotations

from torch import Tensor

from lightning_depth.functional.scatter import data_separation, fisher_ratio, neural_collapse
from lightning_depth.metrics._scatter_state import ScatterMetric

__all__ = ["DataSeparation", "FisherRatio", "NeuralCollapse"]


class DataSeparation(ScatterMetric):
    r"""Separation of the classes after He and Su: the smaller, the better they are separated.

    :math:`D = \mathrm{Tr}(S_W S_B^+)` ("A law of data separation in deep learning", 2022, arXiv
    2210.17020), which falls by about the same factor at every layer of a well-trained network.
    With few samples a class it is biased low, because the class means fit their own noise: at 100
    features and 10 Gaussian classes by a quarter with 5 samples a class, by 4 to 10 % with 20 and
    by 1 to 2 % with 50.

    Shape:
        - features: ``(N, D)``
        - target: ``(N,)``
        - output: scalar, float64

    Args:
        num_classes: Number of classes C.
        num_features: Number of features D; learnt from the first batch by default.
        kwargs: Arguments of every torchmetrics metric.

    Example:
        >>> import torch
        >>> metric = DataSeparation(num_classes=2)
        >>> metric.update(torch.tensor([[0.0], [2.0], [10.0], [12.0]]), torch.tensor([0, 0, 1, 1]))
        >>> round(metric.compute().item(), 9)
        0.04
    """

    higher_is_better: bool = False

    def compute(self) -> Tensor:
        """Return the separation, NaN with one warning where it is not defined."""
        return self._or_warn(data_separation(self._scatter()))


class NeuralCollapse(ScatterMetric):
    r"""Within-class variability that is left, NC1 of Papyan, Han and Donoho: 0 when collapsed.

    :math:`\mathrm{Tr}(S_W S_B^+) / K` ("Prevalence of neural collapse", 2020, arXiv 2008.08186),
    with :math:`S_W` averaged over the samples and :math:`S_B` over the classes, so that it does not
    grow with the samples of a class. Biased low with few of them, as ``DataSeparation`` is.

    Shape:
        - features: ``(N, D)``
        - target: ``(N,)``
        - output: scalar, float64

    Args:
        num_classes: Number of classes C.
        num_features: Number of features D; learnt from the first batch by default.
        kwargs: Arguments of every torchmetrics metric.

    Example:
        >>> import torch
        >>> metric = NeuralCollapse(num_classes=2)
        >>> metric.update(torch.tensor([[0.0], [2.0], [10.0], [12.0]]), torch.tensor([0, 0, 1, 1]))
        >>> round(metric.compute().item(), 9)
        0.02
    """

    higher_is_better: bool = False

    def compute(self) -> Tensor:
        """Return the variability, NaN with one warning where it is not defined."""
        return self._or_warn(neural_collapse(self._scatter()))


class FisherRatio(ScatterMetric):
    r"""Variance between the classes over variance within them: the larger, the better separated.

    :math:`\mathrm{Tr}(S_B) / \mathrm{Tr}(S_W)`, the trace form of Fisher's criterion (1936), which
    exists where there are more features than samples. With few samples a class it is biased high:
    the class means fit their own noise, and F becomes about (F + K / N) / (1 - K / N).

    Shape:
        - features: ``(N, D)``
        - target: ``(N,)``
        - output: scalar, float64

    Args:
        num_classes: Number of classes C.
        num_features: Number of features D; learnt from the first batch by default.
        kwargs: Arguments of every torchmetrics metric.

    Example:
        >>> import torch
        >>> metric = FisherRatio(num_classes=2)
        >>> metric.update(torch.tensor([[0.0], [2.0], [10.0], [12.0]]), torch.tensor([0, 0, 1, 1]))
        >>> round(metric.compute().item(), 9)
        25.0
    """

    higher_is_better: bool = True

    def compute(self) -> Tensor:
        """Return the ratio, NaN with one warning where it is not defined."""
        return self._or_warn(fisher_ratio(self._scatter()))
