"""How much memory a recipe needs on each GPU: an estimate, from shapes and settings alone.

    python -m lockstitch.recipes.gpu_memory LLaDA-8B-Instruct/gsm8k.yaml
    python -m lockstitch.recipes.gpu_memory Qwen3-0.6B/adapt.yaml

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

Of adaptation, in the place of rollouts: logits of the masked positions, rows x canvas x vocabulary x 12 bytes, twice with a
next-token loss or a teacher. Its columns are those of both halves, prompt + 2 x canvas, the prompt as long as a row may be;
distillation without an adapter keeps a second copy of the weights.

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
    "Qwen/Qwen3-0.6B": Shape(0.60e9, 28, 1024, 3072, 2048 + 2 * 1024, 151936),  # tied embeddings
    "Qwen/Qwen3-1.7B": Shape(1.72e9, 28, 2048, 6144, 2048 + 2 * 1024, 151936),
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


def adaptation_memory(recipe: Any, training: Any, model_arguments: Any) -> dict[str, float]:
    """The parts of an adaptation; `ValueError` for a model whose shape is not known, rows or canvases of any length."""
    name = model_arguments.model_name_or_path
    if name not in SHAPES:
        raise ValueError(f"the shape of {name!r} is not known here; known: {', '.join(SHAPES)}")
    if training.max_length is None or training.canvas_length is None:
        raise ValueError(
            f"max_length={training.max_length}, canvas_length={training.canvas_length}: how much memory a batch takes "
            "depends on them"
        )
    shape, rows, canvas = SHAPES[name], training.per_device_train_batch_size, training.canvas_length
    rank = model_arguments.lora_r if model_arguments.use_peft else None
    parts = memory_parts(
        shape,
        rows=rows,
        length=training.max_length + 2 * canvas,
        weight_bytes=2.0 if model_arguments.dtype == "bfloat16" else 4.0,
        rank=rank,
        reference=training.objective == "distillation" and rank is None,
        rollout_rows=0,
        block=0,
    )
    twice = training.ar_loss != "none" or training.objective == "distillation"
    del parts["rollouts"]
    return {**parts, "logits": rows * canvas * shape.vocabulary * 12 * (2 if twice else 1) / GIGA}


def main() -> None:
    """Prints the parts and their sum for a config file and what follows it on the command line."""
    from lockstitch.recipes import adapt, grpo

    if len(sys.argv) < 2:
        raise SystemExit("usage: python -m lockstitch.recipes.gpu_memory CONFIG [--option value ...]")
    try:
        argv = ["--config", sys.argv[1], "--bf16", "false", *sys.argv[2:]]
        if sys.argv[1].rpartition("/")[2].startswith("adapt"):
            parts = adaptation_memory(*adapt.parse(argv))
        else:
            recipe, _, training, model_arguments = grpo.parse(argv)
            parts = memory_of(recipe, training, model_arguments)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    for name, gigabytes in {**parts, "all": sum(parts.values())}.items():
        print(f"{name:<12} {gigabytes:6.1f} GB")


if __name__ == "__main__":
    main()
