"""Intervals for accuracies and for paired differences between methods."""

import math
from collections.abc import Sequence

Z95 = 1.959963984540054


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson, 1927); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = right / n, Z95 * Z95
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(a: Sequence[bool], b: Sequence[bool]) -> dict[str, float | list[float]]:
    """Mean of a - b over the same problems with its standard error and normal 95 % interval.

    Raises `ValueError` for sequences of different or no length.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"paired difference of {len(a)} and {len(b)} outcomes: the same problems, at least one")
    differences = [int(x) - int(y) for x, y in zip(a, b, strict=True)]
    n = len(differences)
    mean = sum(differences) / n
    variance = sum((d - mean) ** 2 for d in differences) / max(n - 1, 1)
    error = math.sqrt(variance / n)
    return {"difference": mean, "standard_error": error, "ci95": [mean - Z95 * error, mean + Z95 * error], "n": n}
