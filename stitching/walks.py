"""Value-guided walks of a diffusion model over its canvas, many problems side by side: VGR and VGB-Momentum (2606.28301).

One pass of the model proposes children: at the 8 masked places of which it is surest, 8 draws each. A child's share is how
many of the draws it has, its value what `Values` says; `walk_law.py` says where the walk goes. With several tokens a
denoising step a move reveals as many, one after another, out of the same pass; with one it is the published move.

- `run_reveals`: only up. A problem's walks run side by side and do not know of one another.
- `run_momentum`: one walk a problem, on from one full canvas to the next: up until the canvas is full or nothing that is
  proposed is worth anything, then down, one move's tokens at a time, each place alike.

What is left out of the law: the shortlist takes likely places and not each alike, and U is what the draws say of it.
For models that attend fully, as a walk masks and reveals anywhere.

Axes: B rows, G canvas positions, D draws at each, V vocabulary.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from lockstitch.sampling.batching import CPU_TOKENS
from lockstitch.sampling.canvases import Canvas
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.noise import derive_seed, uniform
from lockstitch.sampling.tokens import Drawn, draw
from lockstitch.sampling.trajectory import Ledger, Trajectory
from lockstitch.stitching.values import Partial, Values
from lockstitch.stitching.walk_law import DOWN, UP, children_law, keeps_on

PLACES, DRAWS = 8, 8
_CHOICE, _TURN, _BACK, _DRAW = 1, 2, 3, 16  # streams of noise

Child = tuple[int, int]  # a place and the token that is revealed there


def why_not(denoiser: Denoiser, config: SamplerConfig) -> str | None:
    """Why a model cannot walk under these settings, or None if it can."""
    if denoiser.family.layout != "full":
        return f"it reveals anywhere on a canvas, and {denoiser.family.name} models denoise block by block"
    if config.cfg_scale:
        return f"it would ignore cfg_scale={config.cfg_scale}"
    return None


@dataclass
class Walk:
    """One walk, where it stands and what it has cost since its last full canvas.

    Attributes:
        problem: its place among those that walk side by side.
        question: the problem's.
        prompt_ids: its prompt.
        seed: of its noise.
        ids_G, confidence_G, step_G: the canvas: tokens or None, how likely each was when revealed, and by which move.
        direction: `UP` or `DOWN`.
        moves: so far; each has noise of its own.
        passes: of the model so far.
        ledger: the cost.
    """

    problem: int
    question: str
    prompt_ids: list[int]
    seed: int
    ids_G: list[int | None]
    confidence_G: list[float]
    step_G: list[int]
    direction: int = UP
    moves: int = 0
    passes: int = 0
    ledger: Ledger = field(default_factory=Ledger)

    @classmethod
    def start(cls, problem: int, question: str, prompt_ids: Sequence[int], seed: int, canvas: Canvas) -> "Walk":
        """A walk at a canvas on which nothing stands but what is pinned, and stays."""
        sure = [0.0 if token is None else 1.0 for token in canvas]
        return cls(
            problem, question, list(prompt_ids), seed, list(canvas), sure, [-1 if one == 0 else 0 for one in sure]
        )

    def revealed(self) -> list[int]:
        """The places that the walk has filled."""
        return [i for i, step in enumerate(self.step_G) if step > 0]

    def open_places(self, eos_ids: Sequence[int]) -> list[int]:
        """The masked places before the first end."""
        end = next((i for i, token in enumerate(self.ids_G) if token in eos_ids), len(self.ids_G))
        return [i for i in range(end) if self.ids_G[i] is None]

    def noise(self, stream: int, place: int = 0) -> float:
        """A number in [0, 1) of this move."""
        return derive_seed(self.seed, self.moves, stream, place) / 2**63

    def choose(self, law: dict[Child, float], number: int) -> Child:
        """One child by its probability; `number` counts what this move has chosen."""
        left = self.noise(_CHOICE, number)
        for child, probability in law.items():
            left -= probability
            if left < 0:
                return child
        return next(reversed(law))

    def trajectory(self, denoiser: Denoiser) -> Trajectory:
        """The full canvas as a trajectory that costs what the walk did since the last one, which is set back to nothing."""
        cost, self.ledger = self.ledger, Ledger()
        end = next((i for i, token in enumerate(self.ids_G) if token in denoiser.eos_ids), len(self.ids_G))
        ids = [denoiser.mask_id if token is None else token for token in self.ids_G]
        return Trajectory(
            prompt=0,
            seed=self.seed,
            prompt_ids=tuple(self.prompt_ids),
            canvas_ids=tuple(ids),
            length=min(end + 1, len(ids)),
            text=denoiser.decode([ids[:end]])[0],
            finished=end < len(ids),
            commit_step=tuple(self.step_G),
            confidence=tuple(self.confidence_G),
            entropy=(0.0,) * len(ids),
            block=tuple(0 if step > 0 else -1 for step in self.step_G),
            edits=(),
            ledger=cost,
        )


@dataclass(frozen=True)
class Proposals:
    """What one pass says of a walk's canvas: draws at every place, their probabilities, and what is likeliest there."""

    tokens_GD: list[list[int]]
    confidence_GD: list[list[float]]
    likely_G: list[int]
    likely_confidence_G: list[float]


class Walker:
    """Moves walks.

    Args:
        denoiser: the model.
        config: its settings: temperature, `top_k` and `top_p` of the draws, tokens a denoising step.
        values: what canvases are worth.

    Raises `ValueError` for a model or settings that cannot walk (`why_not`).
    """

    def __init__(self, denoiser: Denoiser, config: SamplerConfig, values: Values) -> None:
        refused = why_not(denoiser, config)
        if refused is not None:
            raise ValueError(f"a value-guided walk is not possible: {refused}")
        self.denoiser, self.config, self.values = denoiser, config, values
        self.tokens = -(-config.canvas_length // config.total_steps)

    def is_full(self, walk: Walk) -> bool:
        """Whether nothing is masked before the first end."""
        return not walk.open_places(self.denoiser.eos_ids)

    def is_empty(self, walk: Walk) -> bool:
        """Whether nothing is revealed."""
        return not walk.revealed()

    # --- up ---

    def proposals(self, walks: Sequence[Walk]) -> list[Proposals]:
        """What the model proposes for each walk: one pass each, those that fit together side by side."""
        longest = max(len(walk.prompt_ids) + len(walk.ids_G) for walk in walks)
        most = self.config.batch_size
        if self.denoiser.device.type == "cpu":
            most = min(most, max(1, CPU_TOKENS // longest))
        alike: dict[int, list[int]] = {}  # models that ignore attention masks take rows of one length together
        for i, walk in enumerate(walks):
            alike.setdefault(0 if self.denoiser.calling.honours_mask else len(walk.prompt_ids), []).append(i)
        found: dict[int, Proposals] = {}
        for group in alike.values():
            for at in range(0, len(group), most):
                part = group[at : at + most]
                found.update(zip(part, self._pass([walks[i] for i in part]), strict=True))
        return [found[i] for i in range(len(walks))]

    @torch.no_grad()  # and not in inference mode, which a policy whose weights are sharded is trained after
    def _pass(self, walks: Sequence[Walk]) -> list[Proposals]:
        began = time.perf_counter()
        denoiser, G = self.denoiser, self.config.canvas_length
        width = max(len(walk.prompt_ids) for walk in walks)
        rows, real = [], []
        for walk in walks:
            pad = width - len(walk.prompt_ids)
            canvas = [denoiser.mask_id if token is None else token for token in walk.ids_G]
            rows.append([denoiser.pad_id] * pad + walk.prompt_ids + canvas)
            real.append([0] * pad + [1] * (len(walk.prompt_ids) + G))
        logits_BGV = denoiser.forward_logits(
            denoiser.model,
            torch.tensor(rows, device=denoiser.device),
            torch.tensor(real, device=denoiser.device),
            torch.arange(width, width + G, device=denoiser.device),
        ).float()
        config, forbidden = self.config, denoiser.never_drawn
        for walk in walks:
            walk.moves += 1
        likely = draw(logits_BGV.clone(), None, 0.0, forbidden)
        if config.temperature == 0:
            drawn = Drawn(*(field[..., None] for field in likely))
        else:
            seeds = torch.tensor([walk.seed for walk in walks])
            noise_BL = uniform(seeds, 0, [walk.moves for walk in walks], torch.arange(G * DRAWS), _DRAW)
            noise_BGD = noise_BL.view(len(walks), G, DRAWS).to(denoiser.device)
            drawn = draw(logits_BGV, noise_BGD, config.temperature, forbidden, config.top_k, config.top_p)
        fields = (drawn.token, drawn.confidence, likely.token, likely.confidence)
        out = [Proposals(*row) for row in zip(*(field.tolist() for field in fields), strict=True)]
        seconds = (time.perf_counter() - began) / len(walks)
        for walk in walks:
            walk.passes += 1
            cost = Ledger(1, len(walk.prompt_ids) + G, sequential_steps=1, seconds=seconds)
            walk.ledger = walk.ledger.then(cost)
        return out

    def children(self, walk: Walk, proposed: Proposals) -> tuple[dict[Child, float], dict[Child, float]]:
        """The shares and the values of the children of a canvas, by what a pass over it, or over one before it, proposed."""
        sure_G = proposed.likely_confidence_G
        places = walk.open_places(self.denoiser.eos_ids)
        shortlist = sorted(places, key=lambda place: (-sure_G[place], place))[:PLACES]
        share: dict[Child, float] = {}
        partials: list[Partial] = []
        for place in shortlist:
            draws = proposed.tokens_GD[place]
            sure = dict(zip(draws, proposed.confidence_GD[place], strict=True))
            for token, count in sorted(Counter(draws).items()):
                share[place, token] = count / len(draws) / len(shortlist)
                ids, confidence = list(walk.ids_G), list(walk.confidence_G)
                ids[place], confidence[place] = token, sure[token]
                partials.append(Partial(ids, confidence, proposed.likely_G, proposed.likely_confidence_G))
        values, cost = self.values(walk.problem, walk.question, walk.prompt_ids, partials)
        walk.ledger = walk.ledger.then(cost)
        return share, dict(zip(share, values, strict=True))

    def reveal(self, walk: Walk, proposed: Proposals, child: Child) -> None:
        """Puts a child's token in its place."""
        place, token = child
        walk.ids_G[place] = token
        walk.confidence_G[place] = proposed.confidence_GD[place][proposed.tokens_GD[place].index(token)]
        walk.step_G[place] = walk.moves

    def up(self, walk: Walk, proposed: Proposals, *, always: bool) -> None:
        """Reveals the tokens of one move; fewer where no child is worth anything, unless `always`."""
        for count in range(self.tokens):
            if self.is_full(walk):
                return
            share, value = self.children(walk, proposed)
            if not always and not any(value.values()):
                return
            self.reveal(walk, proposed, walk.choose(children_law(share, value), count))

    def goes_on(self, walk: Walk, proposed: Proposals) -> bool:
        """Whether a walk with momentum keeps its direction at a canvas that is neither full nor empty."""
        share, value = self.children(walk, proposed)
        up = sum(part * value[child] for child, part in share.items())
        if self.is_empty(walk):
            return True
        here = Partial(walk.ids_G, walk.confidence_G, proposed.likely_G, proposed.likely_confidence_G)
        (down,), cost = self.values(walk.problem, walk.question, walk.prompt_ids, [here])
        walk.ledger = walk.ledger.then(cost)
        return walk.noise(_TURN) < keeps_on(walk.direction, up, down)

    def fill(self, walk: Walk, proposed: Proposals) -> None:
        """Reveals what the last pass finds most likely at every open place."""
        for place in walk.open_places(self.denoiser.eos_ids):
            walk.ids_G[place] = proposed.likely_G[place]
            walk.confidence_G[place] = proposed.likely_confidence_G[place]
            walk.step_G[place] = walk.moves
        walk.direction = UP

    # --- down ---

    def down(self, walk: Walk) -> None:
        """Masks the tokens of one move, each revealed place alike."""
        walk.moves += 1
        for count in range(self.tokens):
            held = walk.revealed()
            if not held:
                return
            place = held[int(walk.noise(_BACK, count) * len(held))]
            walk.ids_G[place], walk.confidence_G[place], walk.step_G[place] = None, 0.0, -1


def run_reveals(walker: Walker, walks: Sequence[Walk]) -> None:
    """Walks all canvases up until they are full."""
    while active := [walk for walk in walks if not walker.is_full(walk)]:
        for walk, proposed in zip(active, walker.proposals(active), strict=True):
            walker.up(walk, proposed, always=True)


def run_momentum(
    walker: Walker,
    walks: Sequence[Walk],
    budgets: Sequence[int],
    accept: Callable[[int, Trajectory], bool],
) -> None:
    """Walks with momentum until a full canvas is accepted or the budget is spent.

    Args:
        walker: moves them.
        walks: one a problem.
        budgets: passes of the model, one number a walk. One that never came to a full canvas is filled up with what its
            last pass found most likely.
        accept: called with a walk's index and each full canvas that it comes to; True ends the walk.
    """
    done = [False] * len(walks)
    reached = [False] * len(walks)
    while True:
        asking = []
        for i, walk in enumerate(walks):
            if not done[i] and _to_next_pass(walker, walk, i, reached, accept):
                done[i] = True
            if not done[i] and walk.passes >= budgets[i]:
                done[i] = True
            if not done[i]:
                asking.append(i)
        if not asking:
            return
        for i, proposed in zip(asking, walker.proposals([walks[i] for i in asking]), strict=True):
            walk = walks[i]
            if not walker.goes_on(walk, proposed):
                walk.direction = -walk.direction
            elif walk.direction == UP:
                walker.up(walk, proposed, always=False)
            else:
                walker.down(walk)
            if walk.passes >= budgets[i] and not reached[i] and not walker.is_full(walk):
                walker.fill(walk, proposed)


def _to_next_pass(
    walker: Walker, walk: Walk, i: int, reached: list[bool], accept: Callable[[int, Trajectory], bool]
) -> bool:
    """Does what a walk does before it has to ask the model; returns whether it ends there."""
    while True:
        if walk.direction == UP and walker.is_full(walk):
            reached[i] = True
            if accept(i, walk.trajectory(walker.denoiser)):
                return True
            walk.direction = DOWN
        elif walk.direction == DOWN and walker.is_empty(walk):
            walk.direction = UP
        elif walk.direction == DOWN and (walker.values.only_falls or walker.is_full(walk)):
            walker.down(walk)  # U is not more than D: whatever the model says, the walk keeps its direction
        else:
            return False
