"""What a batch of rollouts says about itself: seeds, the columns that training needs, and a few cheap statistics.

Axes: B rows of this rank, N rows of all ranks (ordered by rank), K completions per prompt, G canvas positions.
"""

import math
import zlib
from array import array
from collections.abc import Sequence
from itertools import pairwise

import torch
from lockstitch.rl.scoring import forks_of
from lockstitch.sampling.noise import derive_seed
from lockstitch.sampling.trajectory import Trajectory

TRAIN, EVAL, REFILL = range(3)  # streams of rollout seeds


def rollout_seeds(seed: int, key: Sequence[int], rows: Sequence[int], per_prompt: int) -> list[int]:
    """A seed for each row, by its place in the global batch: (`seed`, `key`, prompt, completion of the prompt)."""
    return [derive_seed(seed, *key, *divmod(row, per_prompt)) for row in rows]


def trace_columns(trajectories: Sequence[Trajectory], device: torch.device) -> dict[str, torch.Tensor]:
    """What losses and estimators need beside tokens, one row per trajectory.

    `noise_seed (B,)` int64, `commit_step (B, G)`, `block (B, G)` int64, `fork (B, G)` bool, `confidence (B, G)` and
    `entropy (B, G)` float32 of the trace.
    """
    return {
        "noise_seed": torch.tensor([derive_seed(t.seed, 1) for t in trajectories], device=device),
        "commit_step": torch.tensor([t.commit_step for t in trajectories], device=device),
        "block": torch.tensor([t.block for t in trajectories], device=device),
        "fork": forks_of(trajectories, device),
        "confidence": torch.tensor([t.confidence for t in trajectories], device=device),
        "entropy": torch.tensor([t.entropy for t in trajectories], device=device),
    }


def counted(trajectory: Trajectory, scope: str, drops_truncated: bool, given: bool = False) -> list[int]:
    """1 at the canvas positions that a loss counts, 0 elsewhere: those of the scope that were drawn, one entry each.

    Args:
        trajectory: the completion.
        scope: `valid`, up to EOS, or the whole `canvas`.
        drops_truncated: whether a completion that did not end counts for nothing.
        given: whether what the sampler was given (pinned) counts, too.
    """
    t = trajectory
    count = len(t.canvas_ids) if scope == "canvas" else t.length
    if drops_truncated and not t.finished:
        count = 0
    return [int(g < count and (given or since != 0)) for g, since in enumerate(t.commit_step)]


def repetition(ids: Sequence[int]) -> float:
    """Share of tokens that repeat the one before."""
    return sum(a == b for a, b in pairwise(ids)) / max(1, len(ids) - 1)


def fingerprint(ids: Sequence[int]) -> int:
    """A checksum: the same for equal completions, on every rank."""
    return zlib.crc32(array("q", ids).tobytes())


def row_statistics(trajectories: Sequence[Trajectory], seconds: float, device: torch.device) -> torch.Tensor:
    """`(B, 10)` float64: fingerprint, tokens, NFE, finished, repetition, mean confidence and entropy, forks and the sum of
    their entropies, the rank's seconds."""
    rows = []
    for t in trajectories:
        ids, forks = t.completion_ids, [position for position in t.forks if position < t.length]
        rows.append(
            (
                fingerprint(ids),
                t.length,
                t.ledger.nfe,
                t.finished,
                repetition(ids),
                sum(t.confidence[: t.length]) / t.length,
                sum(t.entropy[: t.length]) / t.length,
                len(forks),
                sum(t.entropy[position] for position in forks),
                seconds,
            )
        )
    return torch.tensor(rows, dtype=torch.float64, device=device)


def rollout_metrics(statistics_NS: torch.Tensor, per_prompt: int) -> dict[str, float]:
    """Means over all ranks' rows, for the log.

    `unique` is the share of different completions in a group, `equal_groups` that of groups with a single one, `fork_share`
    that of tokens which are forks, `fork_entropy` their mean entropy in nats (left out without forks), `seconds` the time of
    the slowest rank. What an engine does not tell (confidence, entropy) is left out.
    """
    prints_N, tokens_N, nfe_N, finished_N, repetition_N, confidence_N, entropy_N, *rest = statistics_NS.unbind(1)
    forks_N, fork_entropy_N, seconds_N = rest
    seconds = seconds_N.max().item()
    groups_PK = prints_N[: len(prints_N) // per_prompt * per_prompt].view(-1, per_prompt).sort(1).values
    different_P = (groups_PK[:, 1:] != groups_PK[:, :-1]).sum(1) + 1
    tokens = tokens_N.sum()
    metrics = {
        "rollout/nfe_per_token": (nfe_N.sum() / tokens).item(),
        "rollout/tokens_per_second": tokens.item() / max(seconds, 1e-9),
        "rollout/eos_rate": finished_N.mean().item(),
        "rollout/repetition": repetition_N.mean().item(),
        "rollout/unique": (different_P / per_prompt).mean().item() if len(different_P) else 1.0,
        "rollout/equal_groups": (different_P == 1).double().mean().item() if len(different_P) else 0.0,
        "rollout/fork_share": (forks_N.sum() / tokens).item(),
        "rollout/fork_entropy": (fork_entropy_N.sum() / forks_N.sum()).item(),
        "rollout/confidence": confidence_N.mean().item(),
        "rollout/entropy": entropy_N.mean().item(),
        "rollout/seconds": seconds,
    }
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def groups_with_signal(
    rewards_NF: torch.Tensor, weights_F: torch.Tensor, per_prompt: int, summed: bool
) -> torch.Tensor:
    """Which groups have rewards that differ, bool `(P,)`.

    Args:
        rewards_NF: every reward function's rewards, NaN where it gave none.
        weights_F: weight of each function.
        per_prompt: completions per prompt.
        summed: whether advantages come from the weighted sum; else from each function by itself.
    """
    weighted_NF = rewards_NF * weights_F
    if summed:
        sums_N1 = weighted_NF.nansum(1, keepdim=True)
        weighted_NF = sums_N1.masked_fill(rewards_NF.isnan().all(1, keepdim=True), torch.nan)
    values_PKF = weighted_NF.view(-1, per_prompt, weighted_NF.shape[1])
    highest_PF = values_PKF.nan_to_num(-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(1)
    lowest_PF = values_PKF.nan_to_num(torch.inf, posinf=torch.inf, neginf=-torch.inf).amin(1)
    scale_PF = values_PKF.nan_to_num(0.0).abs().amax(1)
    return (highest_PF - lowest_PF > 1e-6 * scale_PF.clamp(min=1)).any(1)


def replace_rows(
    columns: dict[str, torch.Tensor], new: dict[str, torch.Tensor], at: torch.Tensor, of: torch.Tensor, pad_id: int
) -> dict[str, torch.Tensor]:
    """The batch `columns` with its rows `at` replaced by rows `of` of `new`; prompts are padded on the left as needed."""
    width = max(columns["prompt_ids"].shape[1], new["prompt_ids"].shape[1])

    def padded(name: str, values: torch.Tensor) -> torch.Tensor:
        if name not in ("prompt_ids", "prompt_mask"):
            return values
        fill = pad_id if name == "prompt_ids" else 0
        return torch.nn.functional.pad(values, (width - values.shape[1], 0), value=fill)

    merged = {}
    for name, values in columns.items():
        merged[name] = values
        if values.ndim > 0:
            merged[name] = padded(name, values).clone()
            merged[name][at] = padded(name, new[name])[of]
    return merged
