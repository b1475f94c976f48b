"""The solvers: a transformers model or a vLLM engine in this process, or any OpenAI-compatible server (`openai_solver.py`).

All decode greedily and without repetition penalties. The two in-process solvers stop at the end of the answer, and see
the tokenizer, so that a model without a chat template gets the plain prompt. A server is always asked as a chat model; what
it writes past the box is paid for and cut off.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from lockstitch.rewards.tasks.task import Task
from lockstitch.stitching.openai_solver import OpenAISolver
from lockstitch.stitching.refine import Answered, Script

__all__ = ["OpenAISolver", "TransformersSolver", "VLLMSolver"]


class TransformersSolver:
    """A causal language model of transformers. Takes the model over: its generation config is replaced."""

    def __init__(
        self, model: Any, tokenizer: Any, task: Task, *, max_new_tokens: int = 48, batch_size: int = 16
    ) -> None:
        from transformers import GenerationConfig

        own = model.generation_config.eos_token_id
        self.eos = {own} if isinstance(own, int) else set(own or ())
        if tokenizer.eos_token_id is not None:
            self.eos.add(tokenizer.eos_token_id)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self.eos, default=0)
        model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=self.pad,
            eos_token_id=sorted(self.eos) or None,
        )
        context = model.config.get_text_config().to_dict().get("max_position_embeddings") or tokenizer.model_max_length
        self.longest_prompt = context - max_new_tokens
        self.model = model.eval()
        self.script = Script(tokenizer, task)
        self.batch_size = batch_size

    @classmethod
    def from_pretrained(
        cls, name: str, task: Task, *, max_new_tokens: int = 48, device: str | None = None
    ) -> "TransformersSolver":
        """Loads a directory or hub name: in its own dtype on an accelerator, in float32 on a CPU."""
        from lockstitch.sampling.loading import load_causal

        return cls(*load_causal(name, f"solver {name!r}", device), task, max_new_tokens=max_new_tokens)

    def __call__(self, questions: Sequence[str], evidences: Sequence[str]) -> list[Answered]:
        """Answers in batches; `ValueError` if a prompt and its answer do not fit the model's context."""
        return [answered for _, answered in self.each(questions, evidences)]

    def each(self, questions: Sequence[str], evidences: Sequence[str]) -> Iterator[tuple[int, Answered]]:
        """(place, answer), batch by batch; as `__call__`."""
        prompts = [self.script.prompt(*pair) for pair in zip(questions, evidences, strict=True)]
        if (longest := max(map(len, prompts), default=0)) > self.longest_prompt:
            raise ValueError(f"a solver prompt of {longest} tokens is too long: at most {self.longest_prompt} fit")
        for start in range(0, len(prompts), self.batch_size):
            began = time.perf_counter()
            batch = prompts[start : start + self.batch_size]
            written = list(map(self._written, self._generate(batch)))
            seconds = (time.perf_counter() - began) / len(batch)
            for i, (ids, new) in enumerate(zip(batch, written, strict=True), start):
                yield i, replace(self.script.answered(len(ids), new), seconds=seconds)

    def _generate(self, prompts: list[list[int]]) -> list[list[int]]:
        import torch
        from transformers import StoppingCriteriaList

        width = max(map(len, prompts))
        ids_BL = torch.tensor([[self.pad] * (width - len(ids)) + ids for ids in prompts])
        mask_BL = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])

        def complete(so_far_BL: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            rows = so_far_BL[:, width:].tolist()
            return torch.tensor([self.script.is_complete(row) for row in rows], device=so_far_BL.device)

        with torch.inference_mode():
            out_BL = self.model.generate(
                input_ids=ids_BL.to(self.model.device),
                attention_mask=mask_BL.to(self.model.device),
                stopping_criteria=StoppingCriteriaList([complete]),
            )
        rows: list[list[int]] = out_BL[:, width:].tolist()
        return rows

    def _written(self, row: list[int]) -> list[int]:
        """The row without what the batch made it generate after its own end."""
        for length, token in enumerate(row, 1):
            if token in self.eos or self.script.is_complete(row[:length]):
                return row[:length]
        return row


class VLLMSolver:
    """A vLLM engine in this process: float32 on a CPU, else the model's own dtype. `engine` goes to `vllm.LLM`."""

    def __init__(self, model: str, task: Task, *, max_new_tokens: int = 48, **engine: Any) -> None:
        try:
            from vllm import LLM
        except ImportError as error:
            raise ValueError(
                f"solver 'vllm:{model}' needs vLLM, which is not installed ({error}): pip install lockstitch[vllm]"
            ) from error
        import torch

        dtype = "auto" if torch.accelerator.is_available() else "float32"
        self.engine = LLM(model=model, **{"dtype": dtype, "enable_prefix_caching": True, **engine})
        self.script = Script(self.engine.get_tokenizer(), task)
        self.max_new_tokens = max_new_tokens

    def __call__(self, questions: Sequence[str], evidences: Sequence[str]) -> list[Answered]:
        """Answers all at once. vLLM stops at strings only: a box with braces inside is continued until it closes."""
        from vllm import SamplingParams

        prompts = [self.script.prompt(*pair) for pair in zip(questions, evidences, strict=True)]
        written: list[list[int]] = [[] for _ in prompts]
        stop = self.script.last_character
        pending = list(range(len(prompts)))
        while pending:
            outputs = self.engine.generate(
                [{"prompt_token_ids": prompts[i] + written[i]} for i in pending],
                [
                    SamplingParams(temperature=0, max_tokens=self.max_new_tokens - len(written[i]), stop=[stop])
                    for i in pending
                ],
                use_tqdm=False,
            )
            unfinished = []
            for i, output in zip(pending, outputs, strict=True):
                written[i] += output.outputs[0].token_ids
                open_ended = output.outputs[0].stop_reason == stop and not self.script.is_complete(written[i])
                if open_ended and len(written[i]) < self.max_new_tokens:
                    unfinished.append(i)
            pending = unfinished
        return [self.script.answered(len(ids), new) for ids, new in zip(prompts, written, strict=True)]

    def each(self, questions: Sequence[str], evidences: Sequence[str]) -> Iterator[tuple[int, Answered]]:
        """(place, answer), once all are there: an engine is the faster the more it has to do."""
        began = time.perf_counter()
        answers = self(questions, evidences)
        seconds = (time.perf_counter() - began) / max(1, len(answers))
        yield from enumerate(replace(answered, seconds=seconds) for answered in answers)
