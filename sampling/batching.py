"""Which rows go through the model together.

Rows of near length stand side by side, so that little is padded. On a CPU without a cache, where a pass costs about what its
tokens cost, whole rows are grouped so that padding and passes together cost least; elsewhere a pass takes as many rows as it
may. Results are the same, whatever the grouping.
"""

from collections.abc import Iterator, Sequence

from lockstitch.sampling.canvases import Row
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.layouts import alignment

CPU_TOKENS = 3072  # of a whole pass on a CPU: what is made of more leaves its caches, and costs 1.5 times as much
# What a pass costs on a CPU beside its tokens, as so many tokens: reading the weights, and some 250 small operations, which
# take as long as the arithmetic of one token of a model of 25 million parameters.
WEIGHTS, OPERATIONS = 10, 25e6


def batches(rows: Sequence[Row], denoiser: Denoiser, config: SamplerConfig) -> Iterator[list[int]]:
    """Indices of rows, those that can share a batch together, shortest prompts first.

    As many as `batch_size` says, and on a CPU no more whole rows than one pass computes well.
    """
    family = denoiser.family

    def kind(i: int) -> int:
        length = len(rows[i].prompt_ids)
        return length % alignment(config, family) if denoiser.calling.honours_mask else length

    states = 1 + (config.speculate or 0)  # a row brings its drafts along
    canvas = config.max_length or config.canvas_length
    by_tokens = config.cache == "none" and denoiser.device.type == "cpu"
    fixed = WEIGHTS + OPERATIONS / sum(weight.numel() for weight in denoiser.model.parameters()) if by_tokens else 1.0
    most = 1 if config.length != "fixed" and not denoiser.calling.honours_mask else max(1, config.batch_size // states)
    order = sorted(range(len(rows)), key=lambda i: (kind(i), len(rows[i].prompt_ids), i))
    while order:
        alike = [i for i in order if kind(i) == kind(order[0])]
        order = order[len(alike) :]
        lengths = [(len(rows[i].prompt_ids) + canvas) * states for i in alike]
        start = 0
        for count in cut(lengths, most, fixed, CPU_TOKENS if by_tokens else None):
            yield alike[start : start + count]
            start += count


def cut(lengths: Sequence[int], most: int, fixed: float, tokens: int | None) -> list[int]:
    """How many rows of rising length each pass takes, so that all passes together cost least.

    Args:
        lengths: tokens of each row.
        most: rows of a pass.
        fixed: what a pass costs beside its tokens, as so many tokens; without `tokens`, all that it costs.
        tokens: of a pass, padding included, unless it has one row; None is no limit, and then tokens cost nothing.
    """
    # From each row on: the least cost, and how many rows the first pass takes (of as cheap ones, the most).
    best: list[tuple[float, int]] = [(0.0, 0)] * (len(lengths) + 1)
    for start in range(len(lengths) - 1, -1, -1):
        found = []
        for count in range(1, min(most, len(lengths) - start) + 1):
            size = count * lengths[start + count - 1]
            if tokens is not None and count > 1 and size > tokens:
                break
            cost = fixed + (size if tokens is not None else 0)
            found.append((cost + best[start + count][0], -count))
        least, taken = min(found)
        best[start] = least, -taken
    counts, start = [], 0
    while start < len(lengths):
        counts.append(best[start][1])
        start += counts[-1]
    return counts
