"""Mask consistency (BMC, 2604.16565): a trace that the model believes in comes back when most of it is masked.

Each token of a finished trace is masked with probability .9 and the trace rebuilt in 16 denoising steps, without noise. A
step's score is how much of it comes back: the mean of

- `tokens`: the share of its masked tokens that come back;
- `characters`: the similarity of its text to the text that comes back in its place (Ratcliff and Obershelp);
- `numbers`: the share of numbers, those of the step and those that come back together, that both have;
- `answer`: whether the trace ends in the answer that it had;
- `confidence`: the geometric mean of the probabilities with which the masked tokens were rebuilt.

The paper scores whole traces; here each part but the answer is the step's own, and the parts weigh the same. Masking all
of it would ask for another trace, not for this one. Costs the rebuilding's passes, on the bill as passes of the diffusion
model. Left out: stitching the rebuilt traces.

Axes: K trajectories, N steps of one trajectory, G canvas positions.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from difflib import SequenceMatcher

import torch
from lockstitch.rewards.extract import NUMBER
from lockstitch.rewards.tasks.task import Task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.layouts import in_blocks_of
from lockstitch.sampling.loop import sample
from lockstitch.sampling.noise import derive_seed, uniform
from lockstitch.sampling.trajectory import Ledger, Trajectory
from lockstitch.stitching.score import ROWS, Scores
from lockstitch.stitching.steps import Step

SHARE, STEPS = 0.9, 16
_NUMBER = re.compile(NUMBER)


@dataclass(frozen=True)
class Agreement:
    """How much of a step came back, each part in [0, 1]."""

    tokens: float
    characters: float
    numbers: float
    answer: float
    confidence: float

    @property
    def score(self) -> float:
        """The mean of the parts."""
        parts: tuple[float, ...] = astuple(self)
        return sum(parts) / len(parts)


def remasked(
    trajectory: Trajectory, end_id: int, share: float, seed: int, known: Sequence[int | None] = ()
) -> list[int | None]:
    """The canvas of a trace with each token of its completion open with probability `share`; what follows is given.

    Args:
        trajectory: the trace.
        end_id: what stands where the trace never came to (an end-of-sequence token).
        share: in [0, 1].
        seed: of the draw, which depends on nothing else.
        known: what its prompt pins of the canvas, if it does; that stays.
    """
    draw_G = uniform(torch.tensor([seed]), 0, 0, torch.arange(trajectory.length))[0].tolist()
    tail = [
        token if since >= 0 else end_id
        for token, since in zip(trajectory.canvas_ids, trajectory.commit_step, strict=True)
    ]
    opened = [None if draw < share else token for draw, token in zip(draw_G, trajectory.completion_ids, strict=True)]
    canvas = [*opened, *tail[trajectory.length :]]
    return [own if token is None else token for token, own in zip(known, canvas, strict=True)] if known else canvas


def agreement(
    ids: Sequence[int],
    rebuilt: Sequence[int],
    masked: Sequence[bool],
    confidence: Sequence[float],
    text: str,
    rebuilt_text: str,
    same_answer: bool,
) -> Agreement:
    """How much of one step came back.

    Args:
        ids, rebuilt: tokens at the step's places, before and after.
        masked: which of them were masked; a step of which nothing was comes back as it was.
        confidence: of the rebuilt tokens, read where they were masked.
        text, rebuilt_text: what they say.
        same_answer: whether the whole trace has the answer that it had.
    """
    asked = [i for i, one in enumerate(masked) if one]
    kept = sum(ids[i] == rebuilt[i] for i in asked) / len(asked) if asked else 1.0
    logs = [math.log(max(confidence[i], 1e-12)) for i in asked]
    before, after = Counter(_NUMBER.findall(text)), Counter(_NUMBER.findall(rebuilt_text))
    either = (before | after).total()
    return Agreement(
        kept,
        SequenceMatcher(None, text, rebuilt_text, autojunk=False).ratio(),
        (before & after).total() / either if either else 1.0,
        float(same_answer),
        min(1.0, math.exp(sum(logs) / len(logs))) if logs else 1.0,
    )


class Consistency:
    """Scores steps by how much of them the diffusion model that wrote them puts back.

    Args:
        denoiser: that model.
        task: what reads the answer of a trace.
        share: of the tokens that are masked, above 0 and below 1.
        steps: denoising steps of the rebuilding, at most one a position; at least one a block.
        batch_size: most rows in one pass.

    Raises `ValueError` for a share outside (0, 1): to mask all of a trace asks for another one.
    """

    def __init__(
        self, denoiser: Denoiser, task: Task, *, share: float = SHARE, steps: int = STEPS, batch_size: int = ROWS
    ) -> None:
        if not 0 < share < 1:
            raise ValueError(f"share={share} of the tokens: above 0 and below 1")
        self.denoiser, self.task, self.share, self.steps, self.batch_size = denoiser, task, share, steps, batch_size

    def __call__(
        self, question: str, steps_KN: Sequence[Sequence[Step]], trajectories: Sequence[Trajectory] | None
    ) -> Scores:
        """See `Scorer`; `ValueError` where there are no trajectories to rebuild."""
        if trajectories is None:
            raise ValueError(
                "the scorer 'bmc' rebuilds trajectories that this toolkit sampled; completions from elsewhere "
                "have no canvas"
            )
        known = self.denoiser.given(self.task.prompt(question)) or ()
        rebuilt = self._rebuild(trajectories, known)
        score_KN = [
            [self._agreement(step, old, new).score for step in steps]
            for steps, old, new in zip(steps_KN, trajectories, rebuilt, strict=True)
        ]
        return Scores(score_KN, more=replace(Ledger.together([t.ledger for t in rebuilt]), seconds=0.0))

    def _rebuild(self, trajectories: Sequence[Trajectory], known: Sequence[int | None]) -> list[Trajectory]:
        """Each trajectory once more, from what was left of it; those of one canvas length together."""
        found: dict[int, Trajectory] = {}
        for length in sorted({len(t.canvas_ids) for t in trajectories}):
            places = [k for k, t in enumerate(trajectories) if len(t.canvas_ids) == length]
            config = in_blocks_of(SamplerConfig(canvas_length=length, stop_at_eos=False), self.denoiser.family)
            steps = config.blocks * max(1, min(self.steps, length) // config.blocks)
            chosen = [trajectories[k] for k in places]
            drawn = sample(
                self.denoiser,
                [list(t.prompt_ids) for t in chosen],
                replace(config, steps=steps, batch_size=self.batch_size),
                canvases=[
                    remasked(t, self.denoiser.eos_ids[0], self.share, derive_seed(t.seed, 5), known) for t in chosen
                ],
            )
            found.update(zip(places, drawn, strict=True))
        return [found[k] for k in range(len(trajectories))]

    def _agreement(self, step: Step, old: Trajectory, new: Trajectory) -> Agreement:
        if step.tokens is None:
            raise ValueError(f"step {step.index} of trajectory {step.trajectory} has no token span to rebuild")
        places = slice(*step.tokens)
        answer = self.task.extract(old.text)
        return agreement(
            old.canvas_ids[places],
            new.canvas_ids[places],
            [since > 0 for since in new.commit_step[places]],
            new.confidence[places],
            step.text,
            self.denoiser.decode([new.canvas_ids[places]])[0].strip(),
            answer is not None and answer == self.task.extract(new.text),
        )
