"""Rollouts by an inference engine: SGLang, over HTTP, under the contract of `lockstitch.sampling.contract`.

The engine is a server of its own that already runs the model. It is given the policy's weights whenever they have changed,
in a directory that both see (`update_weights_from_disk`; an adapter is merged into what is written), then is asked for a
completion of every row, and says with each one how it was denoised. A prompt is sent as often as it has completions, with
`n` 1: so each has a seed of its own, and it is plain whose an answer is.

    python -m sglang.launch_server --model-path MODEL --dllm-algorithm LowConfidence --port 30000
    accelerate launch -m lockstitch.recipes.grpo ... --rollout_engine sglang --rollout_engine_url http://127.0.0.1:30000

Draws at a temperature and maps of denoising steps are of SGLang's open pull request 27943. Written to what that says, to
DARE's reading of it and to SGLang's pages on RL; SGLang itself has not been run here. Leaves out the updates of weights
from tensors and from other processes, which hand over GPU memory and need SGLang's own library beside the trainer.
"""

import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lockstitch.rl.grpo_config import DiffusionGRPOConfig
from lockstitch.rl.merge import merged, whole_state
from lockstitch.sampling.adapters import no_merge
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.contract import from_reply
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.families import FACTS
from lockstitch.sampling.loading import save_published
from lockstitch.sampling.trajectory import Trajectory
from peft import PeftModel

from lockstitch.server import Retries, Server, ServerError

KEY = "SGLANG_API_KEY"


class SGLangEngine:
    """A running SGLang server that draws the rollouts of a policy.

    Its key is read from `SGLANG_API_KEY`, if set. Requests that may succeed later are tried again (`lockstitch.server`).

    Args:
        url: the server's address.
        denoiser: the model that is trained, of a block-causal family.
        canvas_length: positions of a canvas: the most tokens of a completion.
        block_length: positions of a block, which must be the server's.
        sampling: SGLang's sampling parameters, those that all rows share.
        at_once: most rows of a request.
        retries: the fields of `Retries`.

    Raises:
        ValueError: for models that engines denoise in another way than training scores them.
        ConnectionError: where no server answers.
    """

    def __init__(
        self,
        url: str,
        denoiser: Denoiser,
        *,
        canvas_length: int,
        block_length: int,
        sampling: dict[str, Any],
        at_once: int = 64,
        **retries: Any,
    ) -> None:
        if denoiser.family.layout != "block_causal":
            raise ValueError(
                f"rollout_engine='sglang' denoises block after block, each seeing those before it; "
                f"{denoiser.family.name} models do not attend so: rollout_engine='transformers'"
            )
        if canvas_length <= block_length:
            raise ValueError(
                f"max_completion_length={canvas_length}: an engine counts blocks from the prompt's first token, and "
                f"needs a canvas longer than one of {block_length} (block_length, the server's)"
            )
        self.denoiser, self.sampling, self.at_once = denoiser, sampling, at_once
        self.canvas_length, self.block_length = canvas_length, block_length
        self.url = url.rstrip("/")
        self._server, self._stop = Server(self.url, KEY, Retries(**retries)), threading.Event()
        self.version: str | None = None
        self._draws = False  # whether it was seen to: two completions of a prompt that differ
        self._ask("/get_model_info", None)

    def _ask(self, path: str, body: dict[str, Any] | None) -> Any:
        return self._server.request(path, body, self._stop)

    # --- weights -----------------------------------------------------------------------------------------------------

    def update(self, model: torch.nn.Module, directory: Path, version: str) -> None:
        """Writes a model to a directory that the server sees too, and has it load that; `version` names the weights.

        Raises `ConnectionError` where the server does not.
        """
        write_weights(model, directory)
        body = {"model_path": str(directory.resolve()), "weight_version": version, "flush_cache": True}
        reply = self._ask("/update_weights_from_disk", body)
        if not isinstance(reply, dict) or reply.get("success") is not True:
            said = reply.get("message") if isinstance(reply, dict) else reply
            raise ServerError(
                f"{self.url} did not load the weights in {directory.resolve()}, which it must see: "
                f"{self._server.safe(' '.join(str(said).split()))[:300]}"
            )
        self.version = version

    # --- rollouts ----------------------------------------------------------------------------------------------------

    def rollouts(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Trajectory]:
        """A trajectory of each prompt, in order; `Trajectory.prompt` is its place.

        Raises:
            ValueError: a reply does not keep to the contract, or a prompt leaves no room for a whole block.
            ConnectionError: the server failed.
        """
        rows = [(list(ids), seed, self._most(ids)) for ids, seed in zip(prompts, seeds, strict=True)]
        drawn: list[Trajectory] = []
        for first in range(0, len(rows), self.at_once):
            portion, began = rows[first : first + self.at_once], time.perf_counter()
            body = {
                "input_ids": [ids for ids, _, _ in portion],
                "sampling_params": [
                    {**self.sampling, "max_new_tokens": most, "n": 1, "sampling_seed": seed}
                    for _, seed, most in portion
                ],
                "return_step_maps": True,
            }
            replies = self._ask("/generate", body)
            if not isinstance(replies, list) or len(replies) != len(portion):
                count = len(replies) if isinstance(replies, list) else "no"
                raise ValueError(f"{self.url} was sent {len(portion)} prompts and gave {count} replies")
            share = (time.perf_counter() - began) / len(portion)
            for i, (reply, row) in enumerate(zip(replies, portion, strict=True), first):
                drawn.append(self._read(reply, i, *row, share))
        texts = self.denoiser.decode([t.completion_ids[: t.length - t.finished] for t in drawn])
        return [replace(one, text=text) for one, text in zip(drawn, texts, strict=True)]

    def check_draws(self, different: float, per_prompt: int) -> None:
        """Raises `ValueError` for an engine that decodes greedily: until now all completions of every group were the same.

        `different` is how many different ones a group had, on average over the groups of all ranks.
        """
        self._draws = self._draws or different > 1
        if not self._draws:
            raise ValueError(
                f"{self.url} decodes greedily: the {per_prompt} completions of each prompt are the same at temperature="
                f"{self.sampling['temperature']}; SGLang draws them from its pull request 27943 on"
            )

    def _most(self, prompt_ids: Sequence[int]) -> int:
        """The tokens that fill the canvas up to the end of its last whole block."""
        most = self.canvas_length - (len(prompt_ids) + self.canvas_length) % self.block_length
        assert most > 0, "the canvas is longer than a block"
        return most

    def _read(self, reply: Any, place: int, ids: list[int], seed: int, most: int, seconds: float) -> Trajectory:
        try:
            self._check_version(reply)
            one = from_reply(
                reply,
                ids,
                canvas_length=self.canvas_length,
                block_length=self.block_length,
                mask_id=self.denoiser.mask_id,
                eos_ids=self.denoiser.eos_ids,
                prompt=place,
                seed=seed,
                seconds=seconds,
            )
            vocabulary = self.denoiser.model.config.get_text_config().vocab_size
            if max(one.canvas_ids) >= vocabulary:
                raise ValueError(f"token {max(one.canvas_ids)} is none of the model's {vocabulary}")
            if not one.finished and one.length != most:
                raise ValueError(f"it stopped after {one.length} of {most} tokens, without an EOS token of the model")
        except ValueError as error:
            raise ValueError(f"{self.url}, completion {place}: {self._server.safe(str(error))}") from None
        return one

    def _check_version(self, reply: Any) -> None:
        meta = reply.get("meta_info") if isinstance(reply, dict) else None
        told = meta.get("weight_version", self.version) if isinstance(meta, dict) else self.version
        if self.version is not None and told != self.version:
            raise ValueError(f"it was drawn with weights {told!r}, and the policy's are {self.version!r}")


def engine_of(args: DiffusionGRPOConfig, denoiser: Denoiser, sampler: SamplerConfig) -> SGLangEngine | None:
    """The engine that draws the rollouts, asked whether it is there; None where this process draws them."""
    if args.rollout_engine == "transformers":
        return None
    assert args.rollout_engine_url is not None
    return SGLangEngine(
        args.rollout_engine_url,
        denoiser,
        canvas_length=sampler.canvas_length,
        block_length=sampler.block,
        sampling={"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k or -1},
        at_once=args.rollout_micro_batch_size,
        **args.engine_retries,
    )


def check_mergeable(model: torch.nn.Module) -> None:
    """Raises `ValueError` for an adapter that an engine cannot be given, as it cannot be merged."""
    if isinstance(model, PeftModel):
        if not all(p.is_floating_point() for p in model.parameters()):
            raise ValueError(
                "rollout_engine='sglang' is given merged weights: an adapter on a quantised base has none"
            )
        if (reason := no_merge(model)) is not None:
            raise ValueError(f"rollout_engine='sglang' is given merged weights, and {reason}")


def write_weights(model: torch.nn.Module, directory: Path) -> None:
    """Writes a whole model, adapters merged for the while, under the names that its checkpoint was published with."""
    shutil.rmtree(directory, ignore_errors=True)
    if isinstance(model, PeftModel):
        with merged(model):
            _write(model.get_base_model(), directory, whole_state(model))
    else:
        _write(model, directory, None)


def _write(model: Any, directory: Path, state: dict[str, torch.Tensor] | None) -> None:
    if (getattr(model.config, FACTS, None) or {}).get("published_config") is not None:
        save_published(model, directory, state)
    else:
        model.save_pretrained(directory, state_dict=state)
