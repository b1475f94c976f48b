"""The solvers: a transformers model or a vLLM engine in this process, or any OpenAI-compatible server.

All decode greedily and without repetition penalties. The two in-process solvers stop at the end of the answer, and see
the tokenizer, so that a model without a chat template gets the plain prompt. A server is always asked as a chat model,
and must be able to continue an assistant turn (`continue_final_message`, as vLLM and SGLang do); what it writes past
the box is paid for and cut off.

    vllm serve MODEL --port 8000          # then: openai:MODEL@http://127.0.0.1:8000
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

from lockstitch.rewards.tasks.task import Task
from lockstitch.stitching.refine import Answered, Script, boxed_answer, chat_messages


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
            do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=self.pad,
            eos_token_id=sorted(self.eos) or None,
        )
        context = model.config.get_text_config().to_dict().get("max_position_embeddings") or tokenizer.model_max_length
        self.longest_prompt = context - max_new_tokens
        self.model = model.eval()
        self.script = Script(tokenizer, task)
        self.batch_size = batch_size

    @classmethod
    def from_pretrained(cls, name: str, task: Task, *, max_new_tokens: int = 48) -> "TransformersSolver":
        """Loads a directory or hub name: in its own dtype on an accelerator, in float32 on a CPU."""
        import torch
        from lockstitch.sampling.loading import loaded_from
        from transformers import AutoModelForCausalLM, AutoTokenizer

        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        with loaded_from(f"solver {name!r}"):
            model = AutoModelForCausalLM.from_pretrained(name, dtype="auto" if device else torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(name)
        return cls(model.to(device or "cpu"), tokenizer, task, max_new_tokens=max_new_tokens)

    def __call__(self, questions: Sequence[str], evidences: Sequence[str]) -> list[Answered]:
        """Answers in batches; `ValueError` if a prompt and its answer do not fit the model's context."""
        prompts = [self.script.prompt(*pair) for pair in zip(questions, evidences, strict=True)]
        if (longest := max(map(len, prompts), default=0)) > self.longest_prompt:
            raise ValueError(f"a solver prompt of {longest} tokens is too long: at most {self.longest_prompt} fit")
        out: list[Answered] = []
        for start in range(0, len(prompts), self.batch_size):
            batch = prompts[start : start + self.batch_size]
            written = map(self._written, self._generate(batch))
            out += [self.script.answered(len(ids), new) for ids, new in zip(batch, written, strict=True)]
        return out

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


class OpenAISolver:
    """A chat model behind an OpenAI-compatible server, over the standard library's HTTP client.

    The key is read from `OPENAI_API_KEY`, if set. The server is asked for its models at once, so that a wrong address
    or name shows before any long work. Refused or broken connections and the statuses 429 and 5xx are tried again,
    with doubling pauses; a request that times out is not, for it would queue behind itself.

    Args:
        model: its name on the server.
        url: the server's address, with or without `/v1`.
        task: what is asked.
        max_new_tokens: the longest answer, in tokens.
        timeout: seconds that a request may take.
        attempts: how often a request is tried.
        backoff: seconds before the second attempt.
        concurrency: requests at a time.
    """

    def __init__(
        self, model: str, url: str, task: Task, *, max_new_tokens: int = 48, timeout: float = 120.0, attempts: int = 5,
        backoff: float = 0.5, concurrency: int = 8,
    ) -> None:
        if attempts < 1:
            raise ValueError(f"attempts={attempts} must be at least 1")
        self.model, self.task, self.max_new_tokens = model, task, max_new_tokens
        self.url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self.timeout, self.attempts, self.backoff, self.concurrency = timeout, attempts, backoff, concurrency
        reply = self._request("/models")
        try:
            names = [str(entry["id"]) for entry in reply["data"]]
        except (KeyError, TypeError) as error:
            raise ConnectionError(f"{self.url} (model {model!r}) sent no list of models: {reply!r:.300}") from error
        if model not in names:
            raise ValueError(f"{self.url} has no model {model!r}; it has {', '.join(map(repr, names)) or 'none'}")

    def __call__(self, questions: Sequence[str], evidences: Sequence[str]) -> list[Answered]:
        """Answers with `concurrency` requests at a time; `ConnectionError` as the server fails."""
        pairs = list(zip(questions, evidences, strict=True))
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(self._ask, pairs))

    def _ask(self, pair: tuple[str, str]) -> Answered:
        body = {
            "model": self.model, "messages": chat_messages(*pair), "max_tokens": self.max_new_tokens, "temperature": 0,
            "repetition_penalty": 1.0, "add_generation_prompt": False, "continue_final_message": True,
        }
        reply = self._request("/chat/completions", body)
        try:
            text, usage = reply["choices"][0]["message"]["content"], reply["usage"]
            tokens, written = int(usage["total_tokens"]), int(usage["completion_tokens"])
        except (KeyError, IndexError, TypeError) as error:
            raise ConnectionError(f"{self.url} (model {self.model!r}) sent no answer or usage: {reply!r:.300}") from error
        return Answered(boxed_answer(text or "", self.task), tokens, written)

    def _request(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON reply to a GET, or to a POST of `body`."""
        where = f"{self.url}{path} (model {self.model!r})"
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        if key := os.environ.get("OPENAI_API_KEY"):
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        failure: Exception | None = None
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.backoff * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}: {error.read(500).decode(errors='replace').strip() or error.reason}"
                failure = ConnectionError(f"{where} refused after {attempt + 1} attempt(s): {reason}")
                if error.code != 429 and error.code < 500:
                    raise failure from error
            except json.JSONDecodeError as error:
                raise ConnectionError(f"{where} sent no JSON: {error}") from error
            except (OSError, HTTPException) as error:
                cause = error.reason if isinstance(error, urllib.error.URLError) else error
                if isinstance(cause, TimeoutError):
                    raise ConnectionError(f"{where}: no answer within {self.timeout} seconds") from error
                failure = ConnectionError(f"{where}: no connection after {attempt + 1} attempt(s): {cause}")
        assert failure is not None
        raise failure
