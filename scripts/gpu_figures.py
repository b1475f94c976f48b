"""Throughput and peak memory of random Llamas on one device: what `gpu_check.py` measures.

throughput  LLaDA's published loop (`tests/llada_reference.py`): every step a whole pass with logits everywhere, softmax and
            ranking in bfloat16. Against it this sampler without a cache, which asks for the same choices, and with the
            caches of Fast-dLLM, which are approximate. One token a step, to the end of every canvas, in batches of 1 and 8
            prompts of one length. Sides take turns; where a turn of all takes long there are fewer. Rounding differs
            between sides, so that tokens of a random model, whose probabilities are all but equal, agree in part: the share
            is shown.
memory      The most memory that tensors hold in two optimisation steps of reinforcement learning, the model included:
            d1's settings, 8 completions, as `rl_steps.py` runs them (no rollouts). An adapter on bfloat16 weights, and all
            weights in float32, both with a reference and passes in bfloat16. Beside it the formula's parts for such a step.
"""

import gc
import math
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch
from bench_sampling import random_prompts
from lockstitch.recipes.gpu_memory import Shape, memory_parts
from lockstitch.rl.lora import lora_config
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample
from rl_steps import GROUP, Steps
from side_by_side import compare, peak_memory
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from lockstitch import embedded_model

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from llada_reference import llada_loop

# Depth and widths of Llama 3.2's models; prompt, canvas and block are the benchmark's.
MODELS = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 512,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
    },
    "3b": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
    },
}
LENGTHS = {"tiny": (16, 16, 8), "1b": (128, 128, 32), "3b": (128, 128, 32)}
BATCHES = (1, 8)
LOOP = "LLaDA's loop"
OURS = {"Lockstitch, no cache": "none", "Lockstitch, prefix cache": "prefix", "Lockstitch, dual cache": "dual"}
SECONDS = 60  # of a batch's turns
RANK = 16


def random_llama(size, dtype, device):
    """A Llama of random weights that attends fully, with the embedded tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_model("sudoku"))
    config = LlamaConfig(
        **MODELS[size],
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return Denoiser(model.eval(), tokenizer)


def seconds_of(work, device, taken):
    """Runs the work, adds the seconds until its device is done to a list, and returns them."""
    began = time.perf_counter()
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    taken.append(time.perf_counter() - began)
    return taken[-1]


def works_of(denoiser, size, batch):
    """What the sides do, by name: each gives the canvases of the same prompts."""
    prompt, canvas, block = LENGTHS[size]
    prompts = random_prompts(denoiser, [prompt] * batch)

    def ours(cache):
        config = SamplerConfig(canvas, block, cache=cache, stop_at_eos=False)
        return [list(t.canvas_ids) for t in sample(denoiser, prompts, config)]

    works = {LOOP: partial(llada_loop, denoiser, prompts, canvas, block, canvas)}
    return works | {side: partial(ours, cache) for side, cache in OURS.items()}


def throughput(size, device, turns):
    """By batch: seconds, tokens a second and the ratio to the loop of each side, medians and quartiles."""
    denoiser = random_llama(size, torch.bfloat16, device)
    prompt, canvas, block = LENGTHS[size]
    found = {
        "parameters": sum(weight.numel() for weight in denoiser.model.parameters()),
        "prompt": prompt,
        "canvas": canvas,
        "block": block,
        "batches": {},
    }
    for batch in BATCHES:
        works = works_of(denoiser, size, batch)
        rows = {side: work() for side, work in works.items()}  # and that was their warm-up
        once = sum(seconds_of(work, device, []) for work in works.values())
        taken = {side: [] for side in works}
        count = min(turns, max(2, int(SECONDS / once)))
        sides = {side: partial(seconds_of, work, device, taken[side]) for side, work in works.items()}
        ratios = compare(f"batch {batch}", LOOP, sides, count)
        found["batches"][str(batch)] = {
            "turns": count,
            "sides": {
                side: {
                    "seconds": spread(values),
                    "tokens_per_second": batch * canvas / statistics.median(values),
                    "ratio": 1.0 if side == LOOP else ratios[side]["ratio"],
                    "ratio_quartiles": [1.0, 1.0] if side == LOOP else ratios[side]["quartiles"],
                    "tokens_of_the_loop": agreement(rows[side], rows[LOOP]),
                }
                for side, values in taken.items()
            },
        }
    return found


def spread(values):
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "quartiles": [low, high]}


def agreement(rows, expected):
    """Share of the tokens that are the same."""
    same = [a == b for one, two in zip(rows, expected, strict=True) for a, b in zip(one, two, strict=True)]
    return sum(same) / len(same)


def peak(work, device):
    """The most bytes that tensors hold at a time during the work, beyond those from before."""
    if device.type == "cpu":
        return peak_memory(work)
    gc.collect()
    module = torch.get_device_module(device)
    module.empty_cache()
    module.reset_peak_memory_stats()
    before = module.memory_allocated()
    work()
    return module.max_memory_allocated() - before


def two_steps(size, device, adapter):
    """Makes a model and takes two steps: the second one has the optimizer's moments beside its activations."""
    denoiser = random_llama(size, torch.bfloat16 if adapter else torch.float32, device)
    prompt, canvas, _ = LENGTHS[size]
    steps = Steps(
        denoiser,
        1,
        lora_config(denoiser, RANK, 2 * RANK) if adapter else None,
        prompt=prompt,
        canvas=canvas,
        use_cpu=device.type == "cpu",
        bf16=True,
    )
    losses = [*steps.ours(), *steps.ours()]
    if not all(map(math.isfinite, losses)):
        raise SystemExit(f"gpu_check: a step's loss is not finite: {losses}")


def shape_of(size):
    """What the formula wants to know of a model."""
    it = MODELS[size]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**it, tie_word_embeddings=True))
    heads, shared = it["num_attention_heads"], it["num_key_value_heads"]
    return Shape(
        sum(weight.numel() for weight in model.parameters()),
        it["num_hidden_layers"],
        it["hidden_size"],
        it["intermediate_size"],
        (heads + 2 * shared) * it["head_dim"],
        it["vocab_size"],
    )


def memory(size, device):
    """By what is trained: the peak in bytes (or why there is none), and the formula's parts for the same."""
    prompt, canvas, block = LENGTHS[size]
    found = {}
    for name, adapter in (("adapter", True), ("all weights", False)):
        parts = memory_parts(
            shape_of(size),
            rows=GROUP,
            length=prompt + canvas,
            weight_bytes=2.0 if adapter else 4.0,
            rank=RANK if adapter else None,
            reference=not adapter,
            rollout_rows=GROUP,
            block=block,
        )
        compared = {part: round(1e9 * parts[part]) for part in ("weights", "training", "activations")}
        row = {"rows": GROUP, "length": prompt + canvas, "rank": RANK if adapter else None, "formula": compared}
        found[name] = row | fits(partial(peak, partial(two_steps, size, device, adapter), device))
        print(f"memory, {name}: {found[name]}", flush=True)
    return found


def fits(measure):
    """The peak, or that there was too little memory."""
    try:
        return {"peak": int(measure()), "reason": None}
    except torch.OutOfMemoryError as error:
        return {"peak": None, "reason": str(error).split("\n")[0]}
