"""Pure mathematics on tensors and numbers, which knows no model and no Trainer."""

from lightning_depth.functional.gradients import GradientFlow, clipped_norm, gradient_flow
from lightning_depth.functional.statistics import Slope, fit_slope, student_t_quantile

__all__ = [
    "GradientFlow",
    "Slope",
    "clipped_norm",
    "fit_slope",
    "gradient_flow",
    "student_t_quantile",
]
