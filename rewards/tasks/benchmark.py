"""What a benchmark is: sources of rows, prompts in the forms that people use, rewards by their plug-in names.

Forms: `tags` is d1's (arXiv 2504.12216), `<reasoning>` and `<answer>` blocks, in wording of our own; `boxed` asks for
`\\boxed{}`, `fenced` for a Markdown code block; `plain` is the bare question, as base models and the embedded ones read it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
Weighted = tuple[str, float]

TAGS = "{job} Answer in exactly this form:\n<reasoning>\nyour reasoning\n</reasoning>\n<answer>\n{answer}\n</answer>"
D1_TAG_REWARDS = (("xml_count", 0.5), ("soft_format", 0.5), ("strict_format", 0.5))  # d1 weighs the answer twice as much


@dataclass(frozen=True)
class Source:
    """Rows of a benchmark: on the hub, in a file, or made up.

    Attributes:
        rows: how many there are; None for as many as one asks for.
        hub: the data set's name there, or None.
        config: its configuration, or None if it has a single one.
        split: its split.
        file: where a folder of benchmark files has them, or None.
        generate: (count, seed) -> that many rows, or None.
    """

    rows: int | None = None
    hub: str | None = None
    config: str | None = None
    split: str = "test"
    file: str | None = None
    generate: Callable[[int, int], list[dict[str, Any]]] | None = None

    def arguments(self) -> dict[str, Any]:
        """What `datasets.load_dataset` is called with."""
        return {"path": self.hub, "name": self.config, "split": self.split}


@dataclass(frozen=True)
class Benchmark:
    """What grading and training need to know of a task.

    Attributes:
        name: what `--task` calls it.
        sources: name -> rows; the first is the usual one.
        read: a row -> its columns, `question` among them; `ValueError` says what is missing.
        instructions: form -> what stands above the question; `plain` has none and is always there.
        rewards: plug-in names with their weights. The first judges: 1.0 is right.
        extract: completion -> the answer that is read in it, or None.
        tag_rewards: what else pays if the form is `tags`.
        ask: question -> how it reads below an instruction.
        plain: question -> the prompt without one.
    """

    name: str
    sources: Mapping[str, Source]
    read: Callable[[Row], dict[str, Any]]
    instructions: Mapping[str, str]
    rewards: tuple[Weighted, ...]
    extract: Callable[[str], str | None]
    tag_rewards: tuple[Weighted, ...] = ()
    ask: Callable[[str], str] = field(default=str)
    plain: Callable[[str], str] = field(default=str)

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms that a prompt can have."""
        return (*self.instructions, "plain")

    def source(self, name: str | None = None) -> Source:
        """The source of that name, or the usual one; `ValueError` lists the known ones."""
        if name is not None and name not in self.sources:
            raise ValueError(f"source {name!r} of task {self.name!r} is not one of {', '.join(self.sources)}")
        return self.sources[name or next(iter(self.sources))]

    def prompt(self, question: str, form: str) -> str:
        """The text that asks a question; `ValueError` lists the known forms."""
        self.check_form(form)
        if form == "plain":
            return self.plain(question)
        return f"{self.instructions[form]}\n\n{self.ask(question)}"

    def rewards_for(self, form: str) -> tuple[Weighted, ...]:
        """The rewards for completions of prompts in that form, the judge first; `ValueError` lists the known forms."""
        self.check_form(form)
        return self.rewards + (self.tag_rewards if form == "tags" else ())

    def check_form(self, form: str) -> None:
        """Raises `ValueError` for a form that this benchmark does not have."""
        if form not in self.forms:
            raise ValueError(f"form {form!r} of task {self.name!r} is not one of {', '.join(self.forms)}")


def instructions(job: str, what: str, *, box: bool = False) -> dict[str, str]:
    """The forms `tags` (the answer in a box within them, or bare) and `boxed` of a job whose answer is a short text."""
    return {
        "tags": TAGS.format(job=job, answer=rf"\boxed{{{what}}}" if box else what),
        "boxed": rf"{job} Reason step by step, and put {what} in \boxed{{}}.",
    }
