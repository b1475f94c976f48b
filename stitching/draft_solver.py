"""A solver that drafts: an autoregressive half that answers, and masks that let it do so in fewer passes.

What it answers is what its causal half answers alone, token for token (see `lockstitch.sampling.drafting`), so it stands in
the place of a `TransformersSolver`. Prompts are read, and answers end, as there.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lockstitch.rewards.tasks.task import Task
from lockstitch.stitching.refine import Answered, Script

if TYPE_CHECKING:
    from lockstitch.sampling.canvases import Look
    from lockstitch.sampling.denoiser import Denoiser

BLOCK = 8  # tokens that a pass checks, where the model has no block of its own


class DraftSolver:
    """A model or an adapter with a causal half, in this process.

    Args:
        denoiser: the model.
        task: what is asked.
        max_new_tokens: the longest answer.
        batch_size: questions at a time.

    Raises `ValueError` for a model without a causal half.
    """

    def __init__(self, denoiser: "Denoiser", task: Task, *, max_new_tokens: int = 48, batch_size: int = 16) -> None:
        from lockstitch.sampling.config import SamplerConfig
        from lockstitch.sampling.layouts import check_layout

        block = denoiser.block_length or BLOCK
        self.config = SamplerConfig(max_new_tokens, block, policy="verify", cache="block", batch_size=batch_size)
        try:
            check_layout(self.config, denoiser.family, denoiser.calling)
        except ValueError as error:
            raise ValueError(f"solver 'draft:' with {denoiser.model.name_or_path!r}: {error}") from error
        self.denoiser, self.batch_size = denoiser, batch_size
        self.script = Script(denoiser.tokenizer, task)

    @classmethod
    def from_pretrained(
        cls, name: str, task: Task, *, max_new_tokens: int = 48, device: str | None = None
    ) -> "DraftSolver":
        """Loads a directory or hub name, of a model or an adapter: in float32 on a CPU, else in its own dtype."""
        import torch
        from lockstitch.sampling.denoiser import Denoiser
        from lockstitch.sampling.loading import usable_device

        there = usable_device(device)
        dtype = torch.float32 if there.type == "cpu" else "auto"
        return cls(Denoiser.from_pretrained(name, dtype=dtype, device=there), task, max_new_tokens=max_new_tokens)

    def __call__(self, questions: Sequence[str], evidences: Sequence[str]) -> list[Answered]:
        """Answers in batches; `ValueError` if a prompt and its answer do not fit the model's context."""
        return [answered for _, answered in self.each(questions, evidences)]

    def each(self, questions: Sequence[str], evidences: Sequence[str]) -> Iterator[tuple[int, Answered]]:
        """(place, answer), batch by batch; as `__call__`."""
        prompts = [self.script.prompt(*pair) for pair in zip(questions, evidences, strict=True)]
        longest, room = max(map(len, prompts), default=0), self.denoiser.longest
        if room is not None and longest + self.config.canvas_length > room:
            raise ValueError(
                f"a solver prompt of {longest} tokens is too long: at most {room - self.config.canvas_length} fit"
            )
        for start in range(0, len(prompts), self.batch_size):
            began = time.perf_counter()
            batch = prompts[start : start + self.batch_size]
            written = self._write(batch)
            seconds = (time.perf_counter() - began) / len(batch)
            for i, (ids, (new, passes)) in enumerate(zip(batch, written, strict=True), start):
                yield i, replace(self.script.answered(len(ids), new), seconds=seconds, passes=passes)

    def _write(self, prompts: list[list[int]]) -> list[tuple[list[int], int]]:
        """What is written after each prompt, up to the end of its answer, and in how many passes."""
        import torch
        from lockstitch.sampling.drafting import Drafting
        from lockstitch.sampling.loop import make_rows

        def stop_complete(look: "Look") -> None:
            for row, canvas, masked in zip(look.rows, look.canvas_AG.tolist(), look.masked_AG.tolist(), strict=True):
                if self.script.is_complete(
                    [token for token, is_open in zip(canvas, masked, strict=True) if not is_open]
                ):
                    drafting.canvases.running_B[row] = False

        with torch.inference_mode():
            rows = make_rows(self.denoiser, prompts, self.config, 1, 0)
            drafting = Drafting(self.denoiser, rows, self.config, stop_complete)
            drawn = drafting.run()
        return [
            (
                self._answer([id_ for id_, step in zip(t.canvas_ids, t.commit_step, strict=True) if step > 0]),
                t.ledger.sequential_steps,
            )
            for t in drawn
        ]

    def _answer(self, row: list[int]) -> list[int]:
        """The row without what was drafted behind its own end."""
        for length, token in enumerate(row, 1):
            if token in self.denoiser.eos_ids or self.script.is_complete(row[:length]):
                return row[:length]
        return row
