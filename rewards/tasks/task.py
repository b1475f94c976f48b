"""What a task is: where rows come from, how one is put to a model, what pays, what is read as the answer, what a step is.

A `Task` is data and plain functions, and every command takes the same one: sampling asks its prompts, stitching cuts its
completions into steps, grading and reinforcement learning pay by its rewards, supervised training imitates its solutions.
What a task does not have (rows, gold answers, a checker) it cannot be used for, and that is said by its name.

    Task("capitals", rewards=(("my_rewards:exact", 1.0),), sources={"train": Source(data="capitals.jsonl")})

Forms: `tags` is d1's (arXiv 2504.12216), `<reasoning>` and `<answer>` blocks, in wording of our own; `boxed` asks for
`\\boxed{}`, `fenced` for a Markdown code block; `plain` is the bare question, as base models and the embedded ones read it.
The tasks that come with the package are in `builtin.py`, a user's own in YAML in `own.py`; `named.py` finds both.
"""

import functools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lockstitch.rewards.contract import RESERVED, checked_values
from lockstitch.rewards.marks import last_answer_block, last_boxed, last_hash, without_special_tokens
from lockstitch.rewards.plugins import load_reward
from lockstitch.rewards.problem import Problem, text_of
from lockstitch.rewards.steps import Segmenter, StepChecker

from lockstitch.errors import others_code
from lockstitch.prompts import ClozePrompt

Row = Mapping[str, Any]
Reward = Callable[..., Any]
Weighted = tuple[str | Reward, float]

TAGS = "{job} Answer in exactly this form:\n<reasoning>\nyour reasoning\n</reasoning>\n<answer>\n{answer}\n</answer>"
D1_TAG_REWARDS: tuple[Weighted, ...] = (
    ("xml_count", 0.5),
    ("soft_format", 0.5),
    ("strict_format", 0.5),  # d1 weighs the answer twice as much
)
PLAIN = "plain"


@dataclass(frozen=True)
class Source:
    """Rows of a task: on the hub, in a file, or made up.

    Attributes:
        rows: how many there are; None for as many as one asks for, or any number.
        hub: the data set's name there, or None.
        config: its configuration, or None if it has a single one.
        split: its split.
        file: where a folder of benchmark files has them, or None.
        generate: (count, seed) -> that many rows, or None.
        data: a file or a directory of one's own, or None.
    """

    rows: int | None = None
    hub: str | None = None
    config: str | None = None
    split: str = "test"
    file: str | None = None
    generate: Callable[[int, int], list[dict[str, Any]]] | None = None
    data: str | None = None


def question_of(columns: Row) -> str:
    """The column `question`, a text; `ValueError` if there is none."""
    return text_of(columns, "question")


def with_question(row: Row) -> dict[str, Any]:
    """The row as it is; `ValueError` if it has no `question`."""
    return {**row, "question": question_of(row)}


def marked_answer(text: str) -> str | None:
    """The content of the last answer block, box or `####` line, or the whole text; None if that is empty."""
    text = without_special_tokens(text)
    found = next(
        (mark for read in (last_answer_block, last_boxed, last_hash) if (mark := read(text)) is not None), text
    )
    return found.strip() or None


def answer_column(columns: Row) -> str | None:
    """The column `answer` as a text; None where it is missing, null or empty."""
    answer = columns.get("answer")
    return None if answer is None or answer == "" else str(answer)


def solution_column(columns: Row) -> str | None:
    """The column `solution`, or else `answer`, as a text; None where both are missing, null or empty."""
    solution = columns.get("solution")
    return str(solution) if solution not in (None, "") else answer_column(columns)


def nothing_concluded(steps: Sequence[str]) -> str | None:
    """`Task.conclude` where only the completion's own words can tell: None."""
    return None


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: what it is called.
        rewards: what pays, each a reward or its plug-in name, with its weight. The first judges: 1.0 is right.
        sources: name -> rows; the first is the usual one.
        read: a row -> its columns by the names that the rewards read; `ValueError` says what is missing.
        question: columns -> what is asked, a text.
        plain: question -> the text that a model completes, without an instruction.
        cloze: question -> the completion with blanks (`lockstitch.sampling.blanks`) for what is not known already, which
            is pinned on the canvas; None where all is open.
        instructions: form -> what stands above the question; `plain` has none and is always there.
        ask: question -> how it reads below an instruction.
        tag_rewards: what else pays if the form is `tags`.
        system: what a conversation begins with, or None.
        extract: completion -> the answer that is read in it, or None.
        write_answer: answer -> a completion that says just this, for the judge.
        gold: columns -> the gold answer in the form of `extract`; None where there is none, or none that can be read.
        gold_column: the column that holds it, which a row may lack where completions are answered but not judged.
        is_judged: whether right and wrong can be told for a problem.
        solution: columns -> a completion to imitate, or None.
        unit: what one reasoning step is: `line`, `sentence`, `row`, or a function from a text to its steps.
        checker: what a sound step is, or None.
        conclude: steps -> the answer that they amount to, or None where only the completion's own words can tell.
        spell_out: (question, answer) -> the steps that an answer amounts to; None where answers do not say them.
        write_step: a step's text -> the form in which the task's completions write it.
        statement: question -> the text that a solver reads before the evidence.
        canvas_length: tokens that a completion takes, or None where nobody knows.
        embedded: whether an embedded model of the task's name, and the embedded solver, can do it.
        generate: (rng, held_out) -> a new problem, or None for a fixed set.
        fingerprint: what changes where the task's file does, or one of code that it names, so that a run is not resumed with
            another; None without a file.
    """

    name: str
    rewards: tuple[Weighted, ...]
    sources: Mapping[str, Source] = field(default_factory=dict)
    read: Callable[[Row], dict[str, Any]] = with_question
    question: Callable[[Row], str] = question_of
    plain: Callable[[str], str] = str
    cloze: Callable[[str], str] | None = None
    instructions: Mapping[str, str] = field(default_factory=dict)
    ask: Callable[[str], str] = str
    tag_rewards: tuple[Weighted, ...] = ()
    system: str | None = None
    extract: Callable[[str], str | None] = marked_answer
    write_answer: Callable[[str], str] = str
    gold: Callable[[Row], str | None] = answer_column
    gold_column: str = "answer"
    is_judged: Callable[[Problem], bool] = lambda problem: True
    solution: Callable[[Row], str | None] = solution_column
    unit: str | Segmenter = "sentence"
    checker: StepChecker | None = None
    conclude: Callable[[Sequence[str]], str | None] = nothing_concluded
    spell_out: Callable[[str, str], Sequence[str]] | None = None
    write_step: Callable[[str], str] = str.strip
    statement: Callable[[str], str] = str.strip
    canvas_length: int | None = None
    embedded: bool = False
    generate: Callable[[random.Random, bool], Problem] | None = None
    fingerprint: str | None = None

    # --- rows and prompts ---

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms that a prompt can have, the usual one of training first."""
        return (*self.instructions, PLAIN)

    def check_form(self, form: str) -> None:
        """Raises `ValueError` for a form that this task does not have."""
        if form not in self.forms:
            raise ValueError(f"form {form!r} of task {self.name!r} is not one of {', '.join(self.forms)}")

    def source(self, name: str | None = None) -> Source:
        """The source of that name, or the usual one; `ValueError` lists the known ones."""
        if not self.sources:
            raise ValueError(f"task {self.name!r} has no dataset to take rows from")
        if name is not None and name not in self.sources:
            raise ValueError(f"source {name!r} of task {self.name!r} is not one of {', '.join(self.sources)}")
        return self.sources[name or next(iter(self.sources))]

    def prompt(self, question: str, form: str = PLAIN) -> str:
        """The text that asks a question; `ValueError` lists the known forms."""
        self.check_form(form)
        if form != PLAIN:
            return f"{self.instructions[form]}\n\n{self.ask(question)}"
        text = self.plain(question)
        return text if self.cloze is None else ClozePrompt(text, self.cloze(question))

    def scorer_prompt(self, question: str) -> str:
        """What a scorer that sees no canvas reads of a question: `prompt`, or the statement where that pins a part of it."""
        return self.prompt(question) if self.cloze is None else self.statement(question)

    @property
    def concludes(self) -> bool:
        """Whether steps can amount to an answer."""
        return self.conclude is not nothing_concluded

    def read_row(self, row: Row) -> Problem:
        """A row as a problem, whose gold answer may be missing; `ValueError` says what else is."""
        try:
            columns = self.read(row)
        except ValueError:
            columns = self.read({self.gold_column: None, **row})
        return Problem(self.question(columns), self.gold(columns), self.solution(columns), columns)

    # --- what pays, and what is right ---

    @property
    def judge_name(self) -> str | None:
        """The plug-in name of the reward that judges; None for a function, which may be called like one of ours."""
        judge = self.rewards[0][0]
        return judge if isinstance(judge, str) else None

    def rewards_for(self, form: str) -> tuple[Weighted, ...]:
        """The rewards for completions of prompts in that form, the judge first; `ValueError` lists the known forms."""
        self.check_form(form)
        return self.rewards + (self.tag_rewards if form == "tags" else ())

    def is_correct(self, question: str, gold: str | None, answer: str) -> bool | None:
        """Whether an answer is right, given the gold answer if it is known; None when that cannot be told."""
        return self.judge(Problem(question, gold), [answer])[0]

    def judge(self, problem: Problem, answers: Sequence[str], texts: Sequence[str] = ()) -> list[bool | None]:
        """Whether each answer is right, by the first reward; None when that cannot be told.

        Args:
            problem: what was asked.
            answers: as `extract` reads them; `""` for none.
            texts: completions, which the reward reads in the place of the bare answers that stand in them: text i for answer
                i, or else the first that gives it.

        Raises `OthersCodeError` where the reward raises, or returns anything but a finite number or None for each.
        """
        if not answers or not self.is_judged(problem):
            return [None] * len(answers)
        read = [self.extract(text) for text in texts]
        said = dict(zip(reversed(read), reversed(texts), strict=True))  # an answer -> the first text that gives it
        completions = [
            texts[i]
            if i < len(texts) and read[i] == (answer or None)
            else said.get(answer) or self.write_answer(answer)
            for i, answer in enumerate(answers)
        ]
        columns = {"question": problem.question, "answer": problem.answer, **(problem.columns or {})}
        kept = {
            name: [value] * len(answers)
            for name, value in columns.items()
            if name not in RESERVED and name != "prompt"
        }
        reward, name = load(self.rewards[0][0]), name_of(self.rewards[0][0])
        with others_code(f"reward {name!r}"):
            returned = reward(prompts=[problem.question] * len(answers), completions=completions, **kept)
        values = checked_values(name, returned, len(answers))
        return [None if value is None else value >= 1.0 for value in values]


def load(reward: str | Reward) -> Reward:
    """A reward, or the one of that plug-in name."""
    if not isinstance(reward, str):
        return reward
    return _plug_in(reward) if reward.isidentifier() else load_reward(reward)


@functools.cache
def _plug_in(name: str) -> Reward:
    """Entry points are looked up on the disk, and a task judges one problem at a time."""
    return load_reward(name)


def name_of(reward: str | Reward) -> str:
    """What a reward is called in tables and metrics: its plug-in name, or the function's own, or an object's class."""
    return reward if isinstance(reward, str) else str(getattr(reward, "__name__", type(reward).__name__))


def instructions(job: str, what: str, *, box: bool = False) -> dict[str, str]:
    """The forms `tags` (the answer in a box within them, or bare) and `boxed` of a job whose answer is a short text."""
    return {
        "tags": TAGS.format(job=job, answer=rf"\boxed{{{what}}}" if box else what),
        "boxed": rf"{job} Reason step by step, and put {what} in \boxed{{}}.",
    }


# --- problems that are made up ---------------------------------------------------------------------------------------


def held_out_problems(task: Task, count: int, seed: int) -> list[Problem]:
    """New problems, none of which any training run of this project can have seen; the same ones for the same seed."""
    return list(_generate(task, count, f"{task.name} held-out {seed}", held_out=True))


def training_problems(task: Task, count: int, seed: int) -> Iterator[Problem]:
    """New problems from the training side of the task's split; the same ones for the same seed."""
    return _generate(task, count, f"{task.name} {seed}", held_out=False)


def _generate(task: Task, count: int, seed: str, *, held_out: bool) -> Iterator[Problem]:
    if task.generate is None:
        raise ValueError(
            f"task {task.name!r} has a fixed set of problems, and makes none up: take its rows, or a task that makes them up"
        )
    rng = random.Random(seed)
    return (task.generate(rng, held_out) for _ in range(count))
