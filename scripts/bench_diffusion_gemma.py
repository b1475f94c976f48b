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

LARGE, SMALL = 16384, 2048  # vocabularies
BLOCK = 32
NEVER = 1e-9  # nats: a mean entropy that no block of a random model falls below
MIXED = (17, 31, 48, 77)


def bench_model(vocabulary):
    """Four layers of width 128, one with full attention, and blocks of 32: 3.2M parameters at 16,384 tokens."""
    denoiser = random_diffusion_gemma(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=256, num_hidden_layers=4, head_dim=32,
        global_head_dim=32, layer_types=["sliding_attention"] * 3 + ["full_attention"], sliding_window=128,
        moe_intermediate_size=64, echo=0.1,
    )  # fmt: skip
    denoiser.model.config.canvas_length = BLOCK
    return denoiser


def random_prompts(lengths):
    """Prompts of random tokens, of either vocabulary."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, SMALL, (length,), generator=generator).tolist() for length in lengths]


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
    large, small = bench_model(LARGE), bench_model(SMALL)
    one, mixed, long = random_prompts((64,)), random_prompts(MIXED), random_prompts((512,))
    schedule = {"max_denoising_steps": 8, "confidence_threshold": NEVER, "stop_at_eos": False}
    config, block = UniformConfig(2 * BLOCK, **schedule), UniformConfig(BLOCK, **schedule)
    check_canvases(large, one, config)

    def against_generate(name, prompts, conditions):
        return compare(name, lambda: generate(large, prompts, config), lambda: sample_uniform(large, prompts, config),
                       arguments.repetitions, f"{conditions}, 2 blocks of {BLOCK}, 8 steps each")  # fmt: skip

    def against_separate_runs(name, denoiser):
        def separately():
            for k in range(8):
                sample_uniform(denoiser, long, block, seed=k)

        return compare(name, separately, lambda: sample_uniform(denoiser, long, block, n=8), arguments.repetitions,
                       f"a 512-token prompt, a block of {BLOCK}, 8 steps, vocabulary {denoiser.vocabulary}")  # fmt: skip

    results = {
        "diffusion_gemma": against_generate("generate, one prompt", one, "batch 1, a 64-token prompt"),
        "diffusion_gemma_batch": against_generate("generate, 4 prompts", mixed, "batch 4, prompts of 17 to 77 tokens"),
        "diffusion_gemma_shared_prefix": against_separate_runs("N = 8, small vocabulary", small),
        "diffusion_gemma_shared_prefix_large_vocabulary": against_separate_runs("N = 8, large vocabulary", large),
    }
    machine = {
        "threads": arguments.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": platform.machine(),
        "parameters": sum(weight.numel() for weight in large.model.parameters()),
    }
    print(json.dumps(machine))
    if arguments.json:
        write_whole(arguments.json, to_json({**results, "machine": machine}))


if __name__ == "__main__":
    main()
