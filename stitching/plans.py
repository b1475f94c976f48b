"""Plan, then diffuse: an autoregressive model writes a plan, and the diffusion model completes a canvas that begins with it.

The solver used the other way round (plan conditioning, 2603.13243: about 100 tokens of plan that every position sees from
the first denoising step on and that never change). A model with a chat template is asked for the steps of a solution in
words, without the answer; what it writes stands at the head of the canvas.

The embedded solver writes answers and nothing else. Where a task can spell an answer out as steps (`Task.spell_out`: the
rows of a grid, the equations of an expression) these are its plan, and the scorer has a say: steps that score at least delta
in the plan are pinned, the others open. Where it cannot, there is no such plan, and another planner is needed.

Left out: plans that are written again when the canvas fails.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lockstitch.rewards.tasks.task import Task
from lockstitch.sampling.chat import encode
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.trajectory import Ledger
from lockstitch.stitching.canvas import pin_chain
from lockstitch.stitching.refine import Solver
from lockstitch.stitching.score import Scorer
from lockstitch.stitching.steps import Clue, Step

PLAN_TOKENS = 100
ASK = "Outline in a few short sentences how to solve this. Do not carry the steps out, and do not give the answer."


@dataclass(frozen=True)
class Plan:
    """What a planner wrote for one question: steps of an answer (`steps`) or a text of its own, and what it cost."""

    steps: tuple[str, ...]
    text: str
    ledger: Ledger


class Planner(Protocol):
    """Questions in, one plan each out."""

    def __call__(self, questions: Sequence[str]) -> list[Plan]: ...


class AnswerPlanner:
    """Plans by a solver that writes answers alone: each answer spelt out as steps, in tasks whose answers say them."""

    def __init__(self, solver: Solver, task: Task) -> None:
        assert task.spell_out is not None
        self.solver, self.task, self.spell_out = solver, task, task.spell_out

    def __call__(self, questions: Sequence[str]) -> list[Plan]:
        """Asks without evidence."""
        plans = []
        for question, answered in zip(questions, self.solver(questions, [""] * len(questions)), strict=True):
            answer = self.task.extract(answered.text)
            steps = () if answer is None else tuple(self.spell_out(question, answer))
            passes = answered.written if answered.passes is None else answered.passes
            cost = Ledger(
                solver_tokens=answered.tokens, sequential_steps=passes, seconds=answered.seconds, solver_passes=passes
            )
            plans.append(Plan(steps, "", cost))
        return plans


class TextPlanner:
    """Plans in words, by a causal language model of transformers, greedily.

    Args:
        model, tokenizer: the model. With a chat template it is asked to outline a solution; without one it completes the
            task's statement after `Plan:`.
        task: states the question.
        tokens: most tokens of a plan (about 100 in the paper).
    """

    def __init__(self, model: Any, tokenizer: Any, task: Task, *, tokens: int = PLAN_TOKENS) -> None:
        self.model, self.tokenizer, self.task, self.tokens = model.eval(), tokenizer, task, tokens
        if tokenizer.chat_template is not None:
            self._ids("")  # a template that refuses a question does so before anything is sampled

    @classmethod
    def from_pretrained(cls, name: str, task: Task, device: str | None = None) -> "TextPlanner":
        """Loads a directory or hub name: in its own dtype on an accelerator, in float32 on a CPU."""
        from lockstitch.sampling.loading import load_causal

        return cls(*load_causal(name, f"planner {name!r}", device), task)

    def __call__(self, questions: Sequence[str]) -> list[Plan]:
        """One question after another: what is padded beside others must not change a plan."""
        return [self._plan(question) for question in questions]

    def _ids(self, question: str) -> list[int]:
        if self.tokenizer.chat_template is not None:
            return encode([{"role": "user", "content": f"{question.strip()}\n\n{ASK}"}], self.tokenizer)
        return list(self.tokenizer(f"{self.task.statement(question).rstrip()}\nPlan:")["input_ids"])

    def _plan(self, question: str) -> Plan:
        import torch

        began = time.perf_counter()
        ids = self._ids(question)
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=torch.tensor([ids], device=self.model.device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=self.model.device),
                max_new_tokens=self.tokens,
                do_sample=False,
            )
        written = out[0, len(ids) :].tolist()
        cost = Ledger(
            solver_tokens=len(ids) + len(written),
            sequential_steps=len(written),
            seconds=time.perf_counter() - began,
            solver_passes=len(written),
        )
        return Plan((), self.tokenizer.decode(written, skip_special_tokens=True).strip(), cost)


def planned(
    denoiser: Denoiser, task: Task, scorer: Scorer, question: str, plan: Plan, length: int, delta: float
) -> tuple[list[int | None], Ledger]:
    """The canvas that a plan begins, and what it cost with the scoring of its steps.

    Raises `ValueError` from a scorer that reads traces, which a plan has not.
    """
    if not plan.steps:
        ids = denoiser.encode([plan.text.rstrip() + "\n"])[0] if plan.text.strip() else []
        canvas: list[int | None] = [*ids[:length]]
        return canvas + [None] * (length - len(canvas)), plan.ledger
    steps = [Step(0, i, text, (0, len(text))) for i, text in enumerate(plan.steps)]
    scores = scorer(question, [steps], None)
    chain = [Clue(step, score, ()) for step, score in zip(steps, scores.score_KN[0], strict=True)]
    pinned = {place for place, clue in enumerate(chain) if clue.score >= delta}
    return pin_chain(denoiser, task, chain, pinned, length), plan.ledger.then(scores.cost())
