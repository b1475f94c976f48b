"""Logistic regression on a few named features, small enough to read: fitted by Newton's method with a ridge, kept as JSON.

Axes: M rows, F features, G features and the bias.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from lockstitch.files import to_json, write_whole

RIDGE = 10.0


@dataclass(frozen=True)
class Logistic:
    """sigmoid(bias + sum_f weight_f (x_f - mean_f) / scale_f), fitted on `examples` rows; `more` is the user's own."""

    features: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    examples: int
    more: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, rows: Sequence[Sequence[float]]) -> list[float]:
        """The probabilities of rows of features."""
        if not rows:
            return []
        mean_F, scale_F, w_F = (
            torch.tensor(one, dtype=torch.float64) for one in (self.mean, self.scale, self.weights)
        )
        x_MF = (torch.tensor(rows, dtype=torch.float64) - mean_F) / scale_F
        found: list[float] = torch.sigmoid(x_MF @ w_F + self.bias).tolist()
        return found

    def write(self, path: Path) -> None:
        """Writes the file that `read` reads."""
        write_whole(path, to_json(asdict(self)))

    @classmethod
    def read(cls, path: Path, names: Sequence[str] | None, what: str) -> "Logistic":
        """That of a file; `ValueError` naming `what` where there is none, or it has other features than `names`."""
        try:
            values: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            lists = {name: tuple(map(float, values[name])) for name in ("mean", "scale", "weights")}
            more = {str(name): float(value) for name, value in values["more"].items()}
            named = tuple(map(str, values["features"]))
            found = cls(named, **lists, bias=float(values["bias"]), examples=int(values["examples"]), more=more)
        except FileNotFoundError:
            raise ValueError(f"{what}: there is no {str(path)!r}; `lockstitch prm` writes one") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{what} cannot be read from {str(path)!r}: {type(error).__name__}: {error}") from error
        numbers = [found.bias, *more.values(), *(one for values in lists.values() for one in values)]
        if not all(map(math.isfinite, numbers)) or not all(scale > 0 for scale in found.scale):
            raise ValueError(
                f"{what} cannot be read from {str(path)!r}: its numbers are to be finite, its scales positive"
            )
        wanted = found.features if names is None else tuple(names)
        if found.features != wanted or {len(one) for one in lists.values()} != {len(wanted)}:
            raise ValueError(f"{str(path)!r} has other features than this version's {what}")
        return found


def fit_logistic(
    names: Sequence[str],
    rows: Sequence[Sequence[float]],
    outcomes: Sequence[float],
    counts: Sequence[float] | None = None,
    ridge: float = RIDGE,
    more: Mapping[str, float] | None = None,
) -> Logistic:
    """The logistic regression of outcomes in [0, 1] on rows of features, each counted so often (default: once).

    The ridge is on the weights of standardised features. Raises `ValueError` where there is nothing to tell apart.
    """
    if len({outcome > 0.5 for outcome in outcomes}) < 2:
        raise ValueError(f"{len(outcomes)} labels that are all the same: there is nothing to tell apart")
    x_MF = torch.tensor(rows, dtype=torch.float64)
    y_M = torch.tensor(outcomes, dtype=torch.float64)
    count_M = torch.ones_like(y_M) if counts is None else torch.tensor(counts, dtype=torch.float64)
    mean_F = (x_MF * count_M[:, None]).sum(0) / count_M.sum()
    scale_F = (((x_MF - mean_F) ** 2 * count_M[:, None]).sum(0) / count_M.sum()).sqrt()
    scale_F = torch.where(scale_F > 1e-9, scale_F, torch.ones_like(scale_F))
    z_MG = torch.cat([(x_MF - mean_F) / scale_F, torch.ones(len(y_M), 1, dtype=torch.float64)], dim=1)
    penalty_G = torch.full((z_MG.shape[1],), ridge, dtype=torch.float64)
    penalty_G[-1] = 1e-6
    w_G = torch.zeros(z_MG.shape[1], dtype=torch.float64)
    for _ in range(50):
        p_M = torch.sigmoid(z_MG @ w_G)
        hessian = z_MG.T @ (z_MG * (count_M * p_M * (1 - p_M))[:, None]) + torch.diag(penalty_G)
        step_G = torch.linalg.solve(hessian, z_MG.T @ (count_M * (y_M - p_M)) - penalty_G * w_G)
        w_G = w_G + step_G
        if float(step_G.abs().max()) < 1e-9:
            break
    *weights, bias = w_G.tolist()
    return Logistic(
        tuple(names), tuple(mean_F.tolist()), tuple(scale_F.tolist()), tuple(weights), bias, len(rows), more or {}
    )
