"""Noise that is a pure function of (seed, block, step, position).

A trajectory's noise depends on nothing else: not on the rows beside it, not on the number of trajectories, not on the
global generator. Mixing is SplitMix64's finaliser (Steele et al., 2014) in wrapping 64-bit integers.
"""

from collections.abc import Sequence

import torch

_MASK = (1 << 64) - 1


def _mix_int(value: int) -> int:
    value = int(value) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def derive_seed(seed: int, *path: int) -> int:
    """A seed in [0, 2^63) for a place in a tree of seeds, such as (call, trajectory)."""
    state = _mix_int(int(seed) + 0x9E3779B97F4A7C15)
    for part in path:
        state = _mix_int(state + 0x9E3779B97F4A7C15 * (part + 1))
    return state >> 1


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts keep the sign


def _place(block: int, step: int, stream: int) -> int:
    return _signed(_mix_int(block * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + stream * 0xA0761D6478BD642F + 1))


def uniform(
    seeds_B: torch.Tensor, block: int, step: int | Sequence[int], positions_L: torch.Tensor, stream: int = 0
) -> torch.Tensor:
    """Uniform draws in [0, 1), `(B, L)` float64, one for each row's seed (int64) and each canvas position (int64).

    `step` is that of all rows, or one for each. Streams are independent: 0 draws tokens, the others whatever else is
    drawn at a step.
    """
    if isinstance(step, int):
        keyed_B = seeds_B ^ _place(block, step, stream)
    else:
        places = {one: _place(block, one, stream) for one in set(step)}
        keyed_B = seeds_B ^ torch.tensor([places[one] for one in step], device=seeds_B.device)
    x = keyed_B[:, None] + positions_L[None, :] * _signed(0x9E3779B97F4A7C15)
    for _ in range(2):  # twice: one round leaves neighbouring positions visibly related
        x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
        x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
        x = x ^ _shift_right(x, 31)
    return _shift_right(x, 11).double() / (1 << 53)


class Noise:
    """The uniform draws of a batch's rows in the block that is being denoised, made for several steps at a time.

    Args:
        seeds_B: the rows' seeds.
    """

    AHEAD = 16  # steps: making one step's draws takes as many operations as making those of sixteen

    def __init__(self, seeds_B: torch.Tensor) -> None:
        self.seeds_B = seeds_B
        self.held: dict[int, tuple[tuple[int, int, int], int, torch.Tensor]] = {}

    def at(self, block: int, step: int, span: slice, stream: int = 0) -> torch.Tensor:
        """What `uniform` says of all rows at the positions of a span, `(B, W)`."""
        key = (block, span.start, span.stop)
        made_for, first, draws_SBW = self.held.get(stream, (None, 0, self.seeds_B))
        if made_for != key or not 0 <= step - first < self.AHEAD:
            steps = [step + s for s in range(self.AHEAD) for _ in self.seeds_B]
            position_W = torch.arange(span.start, span.stop, device=self.seeds_B.device)
            draws = uniform(self.seeds_B.repeat(self.AHEAD), block, steps, position_W, stream)
            first, draws_SBW = step, draws.view(self.AHEAD, len(self.seeds_B), -1)
            self.held[stream] = key, first, draws_SBW
        return draws_SBW[step - first]
