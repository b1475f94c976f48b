"""The noise of likelihood estimates: which positions of a canvas are hidden, as a pure function of each row's seed.

A draw depends on (row's seed, inner iteration, Monte Carlo sample, position) alone: the policy, its old self and the
reference see the same masks at any split into micro-batches, on any rank and in any order. The global generator is never
touched.

Axes: B rows, P prompt columns (left-padded), G canvas positions.
"""

from dataclasses import dataclass

import torch
from lockstitch.sampling.noise import uniform

# Streams of noise, apart from those of the sampler.
_RATIO, _MASK, _BLOCK, _PROMPT, _PERTURB, _SEGMENT = range(16, 22)


@dataclass(frozen=True)
class Draw:
    """Where the noise of one Monte Carlo sample comes from."""

    seeds_B: torch.Tensor
    iteration: int
    sample: int

    def per_row(self, stream: int) -> torch.Tensor:
        """One uniform number per row, `(B,)` float64 in [0, 1)."""
        return uniform(self.seeds_B, self.iteration, self.sample, torch.zeros_like(self.seeds_B[:1]), stream)[:, 0]

    def per_position(self, stream: int, first: int, last: int) -> torch.Tensor:
        """One uniform number per row and position from `first` to before `last`, float64 in [0, 1)."""
        position = torch.arange(first, last, device=self.seeds_B.device)
        return uniform(self.seeds_B, self.iteration, self.sample, position, stream)

    def ratio(self, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """A mask ratio per row, `(B,)`, strictly between `low` and `high`."""
        return low + (high - low) * (self.per_row(_RATIO) * (1 - 2**-53) + 2**-54)

    def segments(self, count: int) -> torch.Tensor:
        """One uniform number per row and segment of its trajectory, `(B, count)` float64 in [0, 1)."""
        return self.per_position(_SEGMENT, 0, count)

    def iid(self, open_BG: torch.Tensor, ratio_B: torch.Tensor) -> torch.Tensor:
        """Hides each open position independently, with its row's ratio."""
        return (self.per_position(_MASK, 0, open_BG.shape[1]) < ratio_B[:, None]) & open_BG

    def count(self, open_BG: torch.Tensor, count_B: torch.Tensor) -> torch.Tensor:
        """Hides exactly so many of each row's open positions, all sets of that size being equally likely."""
        noise_BG = self.per_position(_MASK, 0, open_BG.shape[1]).masked_fill(~open_BG, 2.0)
        return (noise_BG.argsort(1).argsort(1) < count_B[:, None]) & open_BG

    def blocks(self, open_BG: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Hides a random part of one random block and all that follows it (SPG, 2510.09541).

        The block is any of those with open positions; of its n open positions 1 to n are hidden, each number equally
        likely. Returns what is hidden and what stands in the blocks before, both bool `(B, G)`.
        """
        block_G = torch.arange(open_BG.shape[1], device=open_BG.device) // length
        latest_BG = torch.where(open_BG, block_G, -1).cummax(1).values  # block of the last open position so far
        begins_BG = open_BG & (block_G > torch.nn.functional.pad(latest_BG[:, :-1], (1, 0), value=-1))
        rank_BG = begins_BG.long().cumsum(1) - 1  # of each position's block, among those that are open
        chosen_B = (self.per_row(_BLOCK) * begins_BG.sum(1)).long()
        inside_BG = open_BG & (rank_BG == chosen_B[:, None])
        count_B = 1 + (self.per_row(_RATIO) * inside_BG.sum(1)).long()
        after_BG, before_BG = rank_BG > chosen_B[:, None], rank_BG < chosen_B[:, None]
        return self.count(inside_BG, count_B) | open_BG & after_BG, open_BG & before_BG

    def perturbed(self, open_BG: torch.Tensor, ratio: float) -> torch.Tensor:
        """Hides open positions with a fixed probability."""
        return (self.per_position(_PERTURB, 0, open_BG.shape[1]) < ratio) & open_BG

    def prompt(self, prompt_BP: torch.Tensor, real_BP: torch.Tensor, ratio: float, mask_id: int) -> torch.Tensor:
        """The prompt with real tokens masked with a fixed probability (d1, 2504.12216)."""
        # Counted back from the canvas: padding changes nothing.
        noise_BP = self.per_position(_PROMPT, -prompt_BP.shape[1], 0)
        return torch.where((noise_BP < ratio) & real_BP, mask_id, prompt_BP)


def gauss_legendre(nodes: int) -> list[tuple[float, float]]:
    """Nodes and weights of the quadrature on [0, 1] that is exact for polynomials of degree `2 nodes - 1`.

    By Golub and Welsch (1969): the nodes are the eigenvalues of the polynomials' recurrence, the weights are the squared
    first entries of its eigenvectors.
    """
    k = torch.arange(1, nodes, dtype=torch.double)
    beside = k / (4 * k**2 - 1).sqrt()
    value, vector = torch.linalg.eigh(torch.diag(beside, -1) + torch.diag(beside, 1))
    return list(zip(((value + 1) / 2).tolist(), (vector[0] ** 2).tolist(), strict=True))
