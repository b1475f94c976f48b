"""The law of value-guided walks over partly masked canvases: where a walk goes next, as pure functions.

Masked-diffusion VGB (2606.28301): a state is a partly revealed canvas x with a value V(x), an estimate of how good what it
will become is. A move up reveals a place: the child c = x + (i, token) weighs `share * V(c)`, its share being how often the
model proposes it, 1/masked places times p(token | x, i). A move down masks one of the revealed places, each alike. With
`U` the weight of all children and `D = V(x)` that of all parents, the plain chain goes up with probability U / (U + D) and
is reversible: a canvas of m places among L has the mass p(x) (U + D) / C(L, m), a full one p(x) V(x).

Where values tell little, U equals D and that chain strolls, about L^2 moves from end to end. The walk here **keeps its
direction** (VGB-Momentum), as a lifting of that chain: upwards it goes on with probability min(1, U / D), downwards with
min(1, D / U), and turns otherwise; at the ends it always turns. A canvas then has the mass p(x) max(U, D) / C(L, m) in
either direction, a full one p(x) V(x) still.

**Value-guided reveal** (VGR) moves up alone, to a child by its weight; where no child is worth anything, by its share.
"""

from collections.abc import Hashable, Mapping
from typing import TypeVar

Child = TypeVar("Child", bound=Hashable)
UP, DOWN = 1, -1


def children_law(share: Mapping[Child, float], value: Mapping[Child, float]) -> dict[Child, float]:
    """Where a reveal goes: to each child with a probability in proportion to its share times its value.

    Args:
        share: how often each child is proposed, at least 0 and more than 0 together.
        value: V of each, in [0, 1].

    Returns:
        Probabilities; the shares' own where all values are 0.
    """
    weights = {child: part * value[child] for child, part in share.items()}
    if not any(weights.values()):
        weights = dict(share)
    total = sum(weights.values())
    return {child: weight / total for child, weight in weights.items()}


def keeps_on(direction: int, up: float, down: float) -> float:
    """The probability that a walk with momentum goes on in its direction; otherwise it turns where it is.

    Args:
        direction: `UP` or `DOWN`.
        up: U, the sum over children of share times value; 0 for a full canvas.
        down: D, the value of the canvas itself; 0 for an empty one, which has no parents.
    """
    ahead, behind = (up, down) if direction == UP else (down, up)
    if ahead == 0:
        # Nothing ahead is worth anything. Between two nothings a walk goes down, so that it cannot turn for ever.
        return 1.0 if behind == 0 and direction == DOWN else 0.0
    return min(1.0, ahead / behind) if behind > 0 else 1.0
