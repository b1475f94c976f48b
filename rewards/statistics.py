"""Intervals for accuracies and for paired differences between methods; pass@k."""

import math
from collections.abc import Sequence

Z95 = 1.959963984540054


def wilson(right: float, n: float) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson, 1927); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = right / n, Z95 * Z95
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered_interval(values_CN: Sequence[Sequence[float]], most: int | None = None) -> tuple[float, float]:
    """95 % interval of a mean of values in [0, 1] that come in clusters, such as several completions of each problem.

    Wilson's, with the effective number of values p (1 - p) / SE^2 in the place of n (Korn and Graubard, 1998), where SE is
    the clustered standard error (Miller, arXiv 2411.00640, eq. 4). With one value of 0 or 1 a cluster it is `wilson`. Where
    all values are the same, or the mean of every cluster, clusters say nothing of how values differ: the number of
    clusters counts in the first case, and of values in the second.

    Args:
        values_CN: the values of each cluster; at least one.
        most: the number of values to count at most; by default all of them.
    """
    n = sum(map(len, values_CN))
    mean = math.fsum(value for values in values_CN for value in values) / n
    squared = math.fsum(math.fsum(value - mean for value in values) ** 2 for values in values_CN) / n**2
    most = n if most is None else most
    if mean <= 0.0 or mean >= 1.0:
        effective: float = len(values_CN)
    else:
        effective = min(most, mean * (1 - mean) / squared) if squared > 0 else most
    return wilson(mean * effective, effective)


def pass_at_k(n: int, right: int, k: int) -> float:
    """Probability that one of k completions is right, from `right` of n: the unbiased estimator 1 - C(n - c, k) / C(n, k).

    Chen et al. 2021 (arXiv 2107.03374), equation 1. Raises `ValueError` unless 0 <= right <= n and 1 <= k <= n.
    """
    if not 0 <= right <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {right} right in {n}: 0 to {n} may be right, and k is from 1 to {n}")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def paired_difference(a: Sequence[bool], b: Sequence[bool]) -> dict[str, float | list[float]]:
    """Mean of a - b over the same problems with its standard error and 95 % interval.

    The interval is the normal one; where all differences are the same, which says nothing of how they vary, that of Agresti
    and Min (2005): as if half a problem more had come out in each of the four ways.

    Raises `ValueError` for sequences of different or no length.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"paired difference of {len(a)} and {len(b)} outcomes: the same problems, at least one")
    differences = [int(x) - int(y) for x, y in zip(a, b, strict=True)]
    n = len(differences)
    mean = sum(differences) / n
    variance = sum((d - mean) ** 2 for d in differences) / max(n - 1, 1)
    error = math.sqrt(variance / n)
    centre, half = mean, Z95 * error
    if variance == 0:
        centre = mean * n / (n + 2)
        half = Z95 * math.sqrt(((abs(mean) * n + 1) / (n + 2) - centre**2) / (n + 2))
    interval = [max(-1.0, centre - half), min(1.0, centre + half)]
    return {"difference": mean, "standard_error": error, "ci95": interval, "n": n}
