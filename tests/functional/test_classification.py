"""Error and cross-entropy as sums, against scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn.dummy import DummyClassifier
from sklearn.metrics import log_loss

from lightning_depth.functional.classification import (
    chance_error,
    chance_loss,
    classification_sums,
)


def test_sums_are_those_of_sklearn() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 7, generator=generator)
    labels = torch.randint(0, 7, (50,), generator=generator)
    wrong, loss, count = classification_sums(logits, labels).tolist()
    expected = log_loss(labels, logits.double().softmax(1), normalize=False, labels=range(7))
    assert wrong == float((logits.argmax(1) != labels).sum())
    assert loss == pytest.approx(expected, rel=1e-5)
    assert count == 50


def test_ignored_targets_do_not_count() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    both = classification_sums(logits, torch.tensor([0, -100]))
    assert torch.equal(both, classification_sums(logits[:1], torch.tensor([0])))


def test_probabilities_as_targets_and_maps_of_pixels() -> None:
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(32).reshape(2, 4, 4) % 3
    soft = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    assert torch.allclose(classification_sums(logits, labels), classification_sums(logits, soft))
    assert classification_sums(logits, labels)[2] == 32


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits = torch.zeros(4096, 2, dtype=torch.float16)
    sums = classification_sums(logits, torch.ones(4096, dtype=torch.long))
    assert sums[1] == pytest.approx(4096 * 0.6931472, rel=1e-5)


def test_chance_is_that_of_dummy_classifiers() -> None:
    labels = [0] * 5 + [1] * 2 + [2] * 3
    dummy = DummyClassifier(strategy="prior").fit(labels, labels)
    assert chance_error([5, 2, 3]) == pytest.approx(1 - dummy.score(labels, labels))
    assert chance_loss([5, 2, 3, 0]) == pytest.approx(log_loss(labels, dummy.predict_proba(labels)))
