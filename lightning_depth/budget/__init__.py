"""What a network costs, and which width brings it to a given cost."""

from lightning_depth.budget.cost import Cost, measure_cost
from lightning_depth.budget.match import Match, match_width

__all__ = ["Cost", "Match", "match_width", "measure_cost"]
