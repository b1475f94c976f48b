"""DiffusionGemma: this sampler against transformers' own `generate`, and N trajectories against N separate runs.

    python scripts/bench_diffusion_gemma.py [--repetitions 7] [--threads 1] [--json FILE]

A random model of a few million parameters denoises with the same schedule and number of steps on both sides. The sides of a
comparison take turns; each repetition gives one ratio, and what is printed is the median ratio with its quartiles. Before
anything is timed, canvases are checked to be those of `generate` under the same noise. With one thread the times are those
of the processor, which other work on the machine disturbs less; with more they are of the wall clock.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from lockstitch.sampling.uniform import sample_uniform
from lockstitch.sampling.uniform_config import UniformConfig
from tqdm import trange

from lockstitch.files import to_json, write_whole

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from models import random_diffusion_gemma
from uniform_reference import generate_with_noise_of, generation_arguments

VOCABULARY, BLOCK = 16384, 32
NEVER = 1e-9  # nats: a mean entropy that no block of a random model falls below
MIXED = (17, 24, 31, 40, 48, 64, 77, 90)


def bench_model():
    """3.2M parameters: four layers of width 128, one with full attention; a vocabulary of 16,384, blocks of 32."""
    denoiser = random_diffusion_gemma(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=256, num_hidden_layers=4, head_dim=32,
        global_head_dim=32, layer_types=["sliding_attention"] * 3 + ["full_attention"], sliding_window=128,
        moe_intermediate_size=64, echo=0.1,
    )  # fmt: skip
    denoiser.model.config.canvas_length = BLOCK
    return denoiser


def random_prompts(lengths, seed=0):
    """Prompts of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def generate(denoiser, prompts, config):
    """`generate` of a batch, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[denoiser.pad_id] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return denoiser.model.generate(ids, attention_mask=mask, **generation_arguments(denoiser, config))


def timed(work):
    """Seconds: of the processor with one thread, of the wall clock with more."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    work()
    return clock() - began


def compare(name, slow, fast, repetitions, conditions):
    """Median and quartiles of the ratio of two pieces of work that take turns; each is run once before."""
    slow(), fast()
    pairs = [(timed(slow), timed(fast)) for _ in trange(repetitions, desc=name)]
    ratios = [a / b for a, b in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    seconds = [statistics.median(side) for side in zip(*pairs, strict=True)]
    spread = f"quartiles {low:.2f} to {high:.2f}; {seconds[0]:.3f} s against {seconds[1]:.3f} s"
    print(f"{name}: {middle:.2f}x ({spread})", flush=True)
    return {"ratio": middle, "quartiles": [low, high], "ratios": ratios, "seconds": seconds, "conditions": conditions}


def check_canvases(denoiser, prompts, config):
    """Ends the benchmark unless the canvases are those of `generate` under the same noise."""
    for t in sample_uniform(denoiser, prompts, config):
        expected, _ = generate_with_noise_of(denoiser, t.prompt_ids, config, t.seed)
        other = sum(a != b for a, b in zip(t.canvas_ids, expected, strict=True))
        if other:
            raise SystemExit(f"prompt {t.prompt}: {other} of {len(expected)} tokens are not those of generate")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7, help="of each comparison, at least 5 (7)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (1)")
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    if arguments.repetitions < 5:
        parser.error(f"--repetitions {arguments.repetitions}: a median wants at least 5")
    torch.set_num_threads(arguments.threads)
    denoiser = bench_model()
    fixed = {"max_denoising_steps": 8, "confidence_threshold": NEVER, "stop_at_eos": False}
    one, mixed, long = random_prompts((64,)), random_prompts(MIXED), random_prompts((512,))
    config = UniformConfig(2 * BLOCK, **fixed)
    short = UniformConfig(16, block_length=16, **fixed)
    whole = UniformConfig(BLOCK, **fixed)
    check_canvases(denoiser, one, config)

    def separately(settings):
        for k in range(8):
            sample_uniform(denoiser, long, settings, seed=k)

    times = arguments.repetitions
    results = {
        "diffusion_gemma": compare(
            "generate, one prompt", lambda: generate(denoiser, one, config),
            lambda: sample_uniform(denoiser, one, config), times,
            "batch 1, 64-token prompt, 2 blocks of 32, 8 steps each",
        ),
        "diffusion_gemma_batch": compare(
            "generate, 8 prompts", lambda: generate(denoiser, mixed, config),
            lambda: sample_uniform(denoiser, mixed, config), times,
            "batch 8, prompts of 17 to 90 tokens, 2 blocks of 32, 8 steps each",
        ),
        "diffusion_gemma_shared_prefix": compare(
            "N = 8, short canvas", lambda: separately(short), lambda: sample_uniform(denoiser, long, short, n=8), times,
            "N = 8 of one 512-token prompt against 8 runs of one; a block of 16, 8 steps",
        ),
        "diffusion_gemma_shared_prefix_long_canvas": compare(
            "N = 8, long canvas", lambda: separately(whole), lambda: sample_uniform(denoiser, long, whole, n=8), times,
            "N = 8 of one 512-token prompt against 8 runs of one; a block of 32, 8 steps",
        ),
    }  # fmt: skip
    machine = {
        "threads": arguments.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": platform.machine(),
        "parameters": sum(weight.numel() for weight in denoiser.model.parameters()),
    }
    print(json.dumps(machine))
    if arguments.json:
        write_whole(arguments.json, to_json({**results, "machine": machine}))


if __name__ == "__main__":
    main()
