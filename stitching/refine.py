r"""Refine: a solver reads a question and the evidence and writes nothing but the answer.

This module holds what every solver shares: the prompts, the reading of the answer, and `load_solver`. The solvers
themselves are in `lockstitch.stitching.solvers`. Method: Diffusion Stitching (arXiv 2602.22871), step 5: the turn of a
greedy autoregressive model is pre-filled up to the answer tag, and it stops where `\boxed{...}` closes.

Left out: solvers that think before they answer, and sampling of several answers.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lockstitch.rewards.tasks.task import Task

from lockstitch.errors import without_passwords

PLAIN_MARK = "####"
CHAT_MARK = r"The answer is \boxed{"
SPECS = (
    "a model directory or hub name (transformers, in this process), 'draft:MODEL' (one with a causal half and masks that "
    "draft, in this process), 'vllm:MODEL' (vLLM, in this process) or "
    "'openai:MODEL@URL' (a server, such as `vllm serve`; URL starts with http:// or https://)"
)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


@dataclass(frozen=True)
class Answered:
    """What a solver made of one question.

    Attributes:
        text: the answer behind its mark (`#### 24` or `\\boxed{24}`), for `Task.extract` to read.
        tokens: what it cost: tokens read + tokens written, padding not counted.
        written: the tokens written.
        seconds: its share of the time that the solver took.
        passes: forward passes that waited for one another; None where each token waited for the one before.
    """

    text: str
    tokens: int
    written: int
    seconds: float = field(default=0.0, compare=False)
    passes: int | None = None


class Solver(Protocol):
    """Questions and their evidence in, one `Answered` each out. Evidence `""` is the solver alone."""

    def __call__(self, questions: Sequence[str], evidences: Sequence[str]) -> list[Answered]: ...

    def each(self, questions: Sequence[str], evidences: Sequence[str]) -> Iterator[tuple[int, Answered]]:
        """(place among the questions, answer) as they come, in any order; a failure is raised after what did not fail."""
        ...


def plain_solver_prompt(statement: str, evidence: str) -> str:
    """What a solver without a chat template completes: the task's statement, the evidence lines, the answer mark.

    Args:
        statement: the question as the task states it to a solver.
        evidence: `Evidence.render()`, or `""` for the solver alone.
    """
    return "\n".join([statement.rstrip(), *([evidence] if evidence else []), PLAIN_MARK])


def chat_messages(question: str, evidence: str) -> list[dict[str, str]]:
    """The dialogue that a chat model continues: a user turn, and an assistant turn opened up to the answer."""
    parts = [question.strip()]
    if evidence:
        parts.append(
            "Reasoning steps from several attempts follow. Each opens with the confidence c (0 to 1) that it is "
            f"right; some may be wrong.\n{evidence}"
        )
    parts.append(r"Write only the final answer, as \boxed{answer}.")
    return [{"role": "user", "content": "\n\n".join(parts)}, {"role": "assistant", "content": CHAT_MARK}]


def balanced_end(text: str) -> int | None:
    r"""Where the first `\boxed{...}` of the text closes: the index just after its brace, or None if it does not.

    Braces inside count, escaped ones (`\{`, `\}`) do not.
    """
    start = text.find(r"\boxed{")
    if start < 0:
        return None
    depth = 0
    for match in _BRACE.finditer(text, start + len(r"\boxed")):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    return None


def boxed_answer(continuation: str, task: Task) -> str:
    r"""The answer of a chat model, from what it wrote after `CHAT_MARK`: `\boxed{24}`.

    A model (or a server that opens a new turn) may write the whole box again; then that one is read. Where the task
    does not read boxes, the content is returned behind `####`. A box that never closes is returned as it is.
    """
    for text in (CHAT_MARK + continuation, continuation):
        end = balanced_end(text)
        if end is not None:
            box = text[text.index(r"\boxed{") : end]
            content = box.removeprefix(r"\boxed{")[:-1].strip()
            return box if task.extract(box) is not None else f"{PLAIN_MARK} {content}"
    return (CHAT_MARK + continuation).rstrip()


def own_turn_answer(text: str, task: Task) -> str:
    r"""The answer of a chat model that wrote a whole turn: its last `\boxed{...}`, else all of it."""
    start = text.rfind(r"\boxed{")
    end = balanced_end(text[start:]) if start >= 0 else None
    return text.strip() if end is None else boxed_answer(text[start : start + end], task)


def plain_answer(continuation: str) -> str:
    """The answer of a plain model, from what it wrote after the mark: `#### 24`, the first line that is not blank."""
    first, *_ = continuation.lstrip().split("\n", 1)
    return f"{PLAIN_MARK} {first.rstrip()}"


@dataclass(frozen=True)
class Script:
    """How a model is asked through its tokenizer, when its answer is complete, and how that is read.

    Raises `ValueError` for a chat template that takes no conversation which is to be continued.
    """

    tokenizer: Any
    task: Task

    def __post_init__(self) -> None:
        if self.chat:
            self.prompt("", "")

    @property
    def chat(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return self.tokenizer.chat_template is not None

    @property
    def last_character(self) -> str:
        """The character without which no answer is complete: it closes the box, or the line."""
        return "}" if self.chat else "\n"

    def prompt(self, question: str, evidence: str) -> list[int]:
        """Token ids of what the model continues."""
        from lockstitch.sampling.chat import encode

        if self.chat:
            ids = encode(
                chat_messages(question, evidence),
                self.tokenizer,
                add_generation_prompt=False,
                continue_final_message=True,
            )
        else:
            ids = self.tokenizer(plain_solver_prompt(self.task.statement(question), evidence))["input_ids"]
        return list(ids)

    def decode(self, written: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return str(self.tokenizer.decode(written, skip_special_tokens=True))

    def is_complete(self, written: Sequence[int]) -> bool:
        """Whether what was written holds the whole answer, so that nothing more is needed."""
        text = self.decode(written)
        return balanced_end(CHAT_MARK + text) is not None if self.chat else "\n" in text.lstrip()

    def answered(self, read: int, written: Sequence[int]) -> Answered:
        """The record of one question: `read` prompt tokens, and the ids written."""
        text = self.decode(written)
        answer = boxed_answer(text, self.task) if self.chat else plain_answer(text)
        return Answered(answer, read + len(written), len(written))


def load_solver(
    spec: str, task: Task, *, max_new_tokens: int = 48, device: str | None = None, **retries: Any
) -> Solver:
    """The solver that `spec` names.

    Args:
        spec: see `SPECS`.
        task: what is asked; its prompt is what a plain model reads.
        max_new_tokens: the longest answer, in tokens.
        device: of a model that transformers runs in this process; by default the accelerator, if there is one.
        retries: how a server is asked, the fields of `lockstitch.server.Retries`; for no other solver.

    Raises:
        ValueError: if the spec has none of the accepted forms, its extra is not installed, or the server does not have
            that model.
        ConnectionError, RuntimeError: if the server cannot be reached, or refuses.
    """
    from lockstitch.stitching.draft_solver import DraftSolver
    from lockstitch.stitching.solvers import OpenAISolver, TransformersSolver, VLLMSolver

    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")
    if server := re.fullmatch(r"openai:(.+?)@(https?://[^\s/].*)", spec):
        return OpenAISolver(server[1], server[2], task, max_new_tokens=max_new_tokens, **retries)
    if retries:
        raise ValueError(f"{', '.join(retries)} would be ignored: solver {without_passwords(spec)!r} is no server")
    if drafts := re.fullmatch(r"draft:(.+)", spec):
        return DraftSolver.from_pretrained(drafts[1], task, max_new_tokens=max_new_tokens, device=device)
    if engine := re.fullmatch(r"vllm:(.+)", spec):
        return VLLMSolver(engine[1], task, max_new_tokens=max_new_tokens)
    if (spec and Path(spec).is_dir()) or re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", spec):
        return TransformersSolver.from_pretrained(spec, task, max_new_tokens=max_new_tokens, device=device)
    raise ValueError(f"solver {without_passwords(spec)!r} is not one of: {SPECS}")
