"""How much memory a recipe of reinforcement learning needs on each GPU: an estimate, from shapes and settings alone.

    python -m lockstitch.recipes.gpu_memory LLaDA-8B-Instruct/gsm8k.yaml

What is counted, for a model that is whole on every GPU (`single`, `ddp`); the README of the recipes shows the formula:

    weights      parameters x 2 bytes (bf16), 4 (fp32) or .55 (4 bits and their scales); twice with a reference (beta > 0)
                 of a model whose weights are all trained
    training     trained parameters x 16 bytes (fp32: weight, gradient and two moments); where all weights are trained, less
                 what the weights take already
    activations  rows x (prompt + canvas) x layers x (8 hidden + 4 feed-forward) x 2 bytes, for one micro-batch and one
                 pass: an estimate's passes are run one by one
    rollouts     logits of the rows that are denoised together: rows x columns x vocabulary x 12 bytes; the columns are a
                 block
    rest         2 GB: the CUDA context, buffers, fragments

Left out: sharding, gradient checkpointing, and what fragmentation may add. No figure here was measured on a GPU.
"""

import sys
from dataclasses import dataclass
from typing import Any

GIGA = 1e9
BASE_GB = 2.0


@dataclass(frozen=True)
class Shape:
    """A model's size: `feed_forward` is as wide as one token sees it, `attention_out` queries, keys and values together."""

    parameters: float
    layers: int
    hidden: int
    feed_forward: int
    attention_out: int
    vocabulary: int

    def lora_parameters(self, rank: int) -> float:
        """Parameters of an adapter on every linear map of the blocks."""
        attention = rank * (3 * self.hidden + self.attention_out) + rank * 2 * self.hidden
        return self.layers * (attention + 3 * rank * (self.hidden + self.feed_forward))


# Depths and widths as these models are described; none of the checkpoints was loaded here.
SHAPES = {
    "GSAI-ML/LLaDA-8B-Instruct": Shape(8.02e9, 32, 4096, 12288, 3 * 4096, 126464),
    "Dream-org/Dream-v0-Instruct-7B": Shape(7.62e9, 28, 3584, 18944, 3584 + 2 * 512, 152064),
    "JetLM/SDAR-8B-Chat": Shape(8.19e9, 36, 4096, 12288, 4096 + 2 * 1024, 151936),
    "Efficient-Large-Model/Fast_dLLM_v2_7B": Shape(7.6e9, 28, 3584, 18944, 3584 + 2 * 512, 152064),
    # Eight routed experts and a shared one see a token; adapters are put on attention and the shared one.
    "inclusionAI/LLaDA2.0-mini": Shape(16.3e9, 20, 2048, 9 * 512, 2048 + 2 * 512, 157184),
    "dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1": Shape(0.75e9, 28, 1024, 3072, 2048 + 2 * 1024, 151936),
}


def memory_parts(
    shape: Shape,
    *,
    rows: int,
    length: int,
    weight_bytes: float,
    rank: int | None,
    reference: bool,
    rollout_rows: int,
    block: int,
) -> dict[str, float]:
    """Gigabytes (1e9 bytes) by what they are for.

    Args:
        shape: the model's.
        rows: of a micro-batch.
        length: prompt and canvas, tokens.
        weight_bytes: of a parameter.
        rank: of the adapter; None where all weights are trained.
        reference: whether a second copy of the weights is kept.
        rollout_rows: completions denoised together.
        block: positions of a block.
    """
    trained = shape.parameters if rank is None else shape.lora_parameters(rank)
    return {
        "weights": shape.parameters * weight_bytes * (2 if reference else 1) / GIGA,
        "training": trained * (16 if rank is not None else 16 - min(weight_bytes, 4)) / GIGA,
        "activations": rows * length * shape.layers * (8 * shape.hidden + 4 * shape.feed_forward) * 2 / GIGA,
        "rollouts": rollout_rows * block * shape.vocabulary * 12 / GIGA,
        "rest": BASE_GB,
    }


def memory_of(recipe: Any, training: Any, model_arguments: Any) -> dict[str, float]:
    """The parts for parsed arguments; `ValueError` for a model whose shape is not known or a prompt of any length."""
    name = model_arguments.model_name_or_path
    if name not in SHAPES:
        raise ValueError(f"the shape of {name!r} is not known here; known: {', '.join(SHAPES)}")
    if recipe.max_prompt_length is None:
        raise ValueError("max_prompt_length=None: how much memory a batch takes depends on its longest prompt")
    sampler = training.sampler_config()
    weight_bytes = 0.55 if model_arguments.load_in_4bit else 2.0 if model_arguments.dtype == "bfloat16" else 4.0
    rank = model_arguments.lora_r if model_arguments.use_peft else None
    rows = training.per_device_train_batch_size
    return memory_parts(
        SHAPES[name],
        rows=rows,
        length=recipe.max_prompt_length + training.max_completion_length,
        weight_bytes=weight_bytes,
        rank=rank,
        reference=rank is None and training.beta > 0,
        rollout_rows=min(training.rollout_micro_batch_size, rows * training.steps_per_generation),
        block=sampler.block,
    )


def main() -> None:
    """Prints the parts and their sum for a config file and what follows it on the command line."""
    from lockstitch.recipes.grpo import parse

    if len(sys.argv) < 2:
        raise SystemExit("usage: python -m lockstitch.recipes.gpu_memory CONFIG [--option value ...]")
    try:
        recipe, _, training, model_arguments = parse(["--config", sys.argv[1], "--bf16", "false", *sys.argv[2:]])
        parts = memory_of(recipe, training, model_arguments)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    for name, gigabytes in {**parts, "all": sum(parts.values())}.items():
        print(f"{name:<12} {gigabytes:6.1f} GB")


if __name__ == "__main__":
    main()
