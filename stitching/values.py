"""What a partly revealed canvas is worth: V(x) in [0, 1], for walks that are guided by it.

Where the scorer is the task's exact checker, V is what it says of what is revealed and of nothing else: 1.0 until something
is wrong, then 0.0. Any other scorer reads whole steps, so the canvas is filled up with the tokens that the model finds most
likely at its open places (the pass that proposed them says so, at no further cost), and V is the product of the scores of
the filled text's steps: the chance that all of them are right, if each is with its score. Left out: values that a model was
trained for.

Axes: K canvases, N steps of one, G canvas positions.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lockstitch.rewards.steps import partial_soundness
from lockstitch.rewards.tasks.task import Task
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.trajectory import Ledger, Trajectory
from lockstitch.stitching.score import Calculator, Scorer, reads_text_alone
from lockstitch.stitching.segment import steps_of, token_spans

HOLE = "\N{REPLACEMENT CHARACTER}"  # what stands for a masked token in the text that a checker reads


@dataclass(frozen=True)
class Partial:
    """A partly revealed canvas.

    Attributes:
        ids_G: its tokens, None where it is masked.
        confidence_G: the probability that each token had when it was revealed; of pinned ones 1.
        likely_G: the model's most likely token at each place that is masked.
        likely_confidence_G: how likely that is.
    """

    ids_G: Sequence[int | None]
    confidence_G: Sequence[float]
    likely_G: Sequence[int]
    likely_confidence_G: Sequence[float]

    def filled(
        self, denoiser: Denoiser, prompt_ids: Sequence[int], seed: int, cost: Ledger | None = None
    ) -> Trajectory:
        """The canvas with the most likely tokens at its open places, as the trajectory that it would be."""
        ids = [likely if token is None else token for token, likely in zip(self.ids_G, self.likely_G, strict=True)]
        confidence = [
            own if token is not None else likely
            for token, own, likely in zip(self.ids_G, self.confidence_G, self.likely_confidence_G, strict=True)
        ]
        end = next((i for i, token in enumerate(ids) if token in denoiser.eos_ids), len(ids))
        return Trajectory(
            prompt=0,
            seed=seed,
            prompt_ids=tuple(prompt_ids),
            canvas_ids=tuple(ids),
            length=min(end + 1, len(ids)),
            text=denoiser.decode([ids[:end]])[0],
            finished=end < len(ids),
            commit_step=(1,) * len(ids),
            confidence=tuple(confidence),
            entropy=(0.0,) * len(ids),
            block=(0,) * len(ids),
            edits=(),
            ledger=cost or Ledger(),
        )


class Values:
    """V of canvases of one problem at a time, by a scorer.

    Args:
        denoiser: its tokenizer reads the canvases.
        task: what a step is, and its checker.
        scorer: where it is the exact one, revealed tokens alone are judged.
    """

    def __init__(self, denoiser: Denoiser, task: Task, scorer: Scorer) -> None:
        self.denoiser, self.task, self.scorer = denoiser, task, scorer
        self.once, self.known = reads_text_alone(scorer), dict[tuple[int, str], float]()
        self.pieces = dict[tuple[int, ...], str]()  # what runs of tokens say, each decoded once
        self.checker = scorer.checker if isinstance(scorer, Calculator) and task.unit in ("line", "row") else None

    @property
    def only_falls(self) -> bool:
        """Whether no canvas is worth more than one that it is a child of."""
        return self.checker is not None

    def __call__(
        self, problem: int, question: str, prompt_ids: Sequence[int], canvases: Sequence[Partial]
    ) -> tuple[list[float], Ledger]:
        """The values of canvases, and what they cost; what reads the same is paid for once in each problem."""
        began = time.perf_counter()
        if self.checker is not None:
            texts = [self.text(one.ids_G) for one in canvases]
            for text in texts:
                if (problem, text) not in self.known:
                    self.known[problem, text] = partial_soundness(self.checker, question, text, HOLE)
            return [self.known[problem, text] for text in texts], Ledger(seconds=time.perf_counter() - began)
        filled = [one.filled(self.denoiser, prompt_ids, 0) for one in canvases]
        # What reads the same is scored once, if the text is all that the scorer reads.
        keys = [(problem, t.text) if self.once else (problem, str(k)) for k, t in enumerate(filled)]
        known = self.known if self.once else {}
        new = {key: t for key, t in zip(keys, filled, strict=True) if key not in known}
        cost = Ledger()
        if new:
            steps_KN = [
                steps_of(t.text, self.task.unit, k, token_spans(self.denoiser.tokenizer, t.completion_ids))
                for k, t in enumerate(new.values())
            ]
            scores = self.scorer(question, steps_KN, list(new.values()))
            cost = scores.cost()
            known.update((key, math.prod(row) if row else 0.0) for key, row in zip(new, scores.score_KN, strict=True))
        return [known[key] for key in keys], replace(cost, seconds=time.perf_counter() - began)

    def text(self, ids_G: Sequence[int | None]) -> str:
        """The text of a canvas up to its first end, with a hole for every masked token."""
        end = next((i for i, token in enumerate(ids_G) if token in self.denoiser.eos_ids), len(ids_G))
        text, run = "", list[int]()
        for token in ids_G[:end]:
            if token is None:
                text, run = text + self._decode(run) + HOLE, []
            else:
                run.append(token)
        return text + self._decode(run)

    def _decode(self, run: Sequence[int]) -> str:
        key = tuple(run)
        if key not in self.pieces:
            self.pieces[key] = self.denoiser.decode([key])[0] if key else ""
        return self.pieces[key]
