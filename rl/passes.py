"""What estimators have in common: passes, the positions that they may ask, and their weighted sum.

Axes: B rows, P prompt columns, G canvas positions, C channels of an answer.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from lockstitch.rl.estimator_config import EstimatorConfig
from lockstitch.rl.scoring import Canvases, Scorer


class Pass(NamedTuple):
    """What one pass shows and asks, and the weight of its answers."""

    shown_BG: torch.Tensor
    asked_BG: torch.Tensor
    weight_B: torch.Tensor
    prompt_BP: torch.Tensor


def open_positions(config: EstimatorConfig, canvases: Canvases) -> tuple[torch.Tensor, torch.Tensor]:
    """The positions whose tokens are scored, and those that are always shown, bool `(B, G)`.

    Scored is what the sampler committed in the config's scope; shown is what it was given. Whatever else there is (what
    follows the end) stays masked, as it may have been in the rollout.
    """
    scope_BG = canvases.valid_BG if config.scope == "valid" else torch.ones_like(canvases.valid_BG)
    if canvases.commit_step_BG is None:
        return scope_BG, torch.zeros_like(scope_BG)
    return scope_BG & (canvases.commit_step_BG > 0), canvases.commit_step_BG == 0


def weighted_sum(
    scorer: Scorer, canvases: Canvases, passes: Iterator[Pass], divisor: int, more: bool = True
) -> torch.Tensor:
    """The weighted sum of passes by a divisor, `(B, G)`; `more` than one pass are run again in the backward pass."""
    total_BG = torch.zeros(canvases.completion_BG.shape, device=canvases.completion_BG.device)
    for p in passes:
        logp_BG = scorer(canvases, p.shown_BG, p.asked_BG, p.prompt_BP, recompute=more)
        total_BG = total_BG + (p.weight_B / divisor).to(logp_BG)[:, None] * logp_BG
    return total_BG
