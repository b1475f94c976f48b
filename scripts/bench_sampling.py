"""How fast the sampler is, in seven comparisons, each side by side in one run.

    python scripts/bench_sampling.py --json embedded.json                      # the embedded models
    python scripts/bench_sampling.py --model DIR --json smollm2.json           # a Llama, Qwen2 or Qwen3 (fetch_smollm2.py)
    python scripts/bench_sampling.py --only memory block_cache

exact            LLaDA's published loop against this sampler without a cache, one token a step: the same tokens.
fast_dllm        Fast-dLLM's published loop (a threshold; no cache, prefix and dual cache), which takes one prompt at a time,
                 against this sampler with the same settings, in batches of 1 and 8 prompts of mixed lengths: the same
                 tokens.
approximate      LLaDA's loop against the dual cache: on a directory's model at one token a step too; on the embedded one
                 under a threshold, the fastest of a sweep whose accuracy is within a point of greedy decoding in the
                 best of three block lengths, or the most accurate one of it. The sweep's problems choose; `accuracy` is that
                 of as many others. `uncached` is a threshold without a cache, with its accuracy on both.
block_cache      This sampler without and with the block cache, where it is exact: the same tokens, 256 of them. Without,
                 a pass already ends with the block, for nothing later is seen.
shared_prefix    8 trajectories of a 512-token prompt, drawn one by one and together: the same tokens.
diffusion_gemma  transformers' `generate` of a random model of 3.2M parameters against this sampler, same schedule;
                 canvases are those of `generate` under the same noise.
memory           Peak of tensor memory: the published loop against this sampler, at the same canvases.

A comparison's `ratio` is the least of the median ratios of its `runs`, and `quartiles` are that run's.

The published loops are `tests/llada_reference.py` and `tests/fast_dllm_reference.py`, as their authors' code stands today:
logits at every position that a pass computes, all rows to the end of their canvas. LLaDA's reads the whole batch at every
step and takes the softmax in the model's precision; Fast-dLLM's takes it in float64. On the embedded model everything is
run whole: both sides write the same completions, the published loop up to the end of every canvas. On a larger model a
whole run of LLaDA's takes an hour or two, but its steps all cost the same, so steps are compared: a
block of 32 is open, the rest of a canvas of 128 is given, and the loop takes one step where this sampler takes two
(`exact`, 16 tokens each) or four (`approximate`, 8 each). From these, tokens per second at one token a step follow: for
the loop and `exact` a step's time, for the dual cache the opening pass and 31 of the later ones. That is unfavourable to
`exact`, which asks for 24 positions of a row on average where one token a step would have it ask for 16.5, and neutral to
the dual cache (16). A short canvas is denoised from beginning to end on both sides, to check tokens and the ratio.
"""

import argparse
import random
import statistics
import sys
from functools import cache
from pathlib import Path

import torch
from lockstitch.rewards.tasks.named import get_task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser, make_causal
from lockstitch.sampling.families import BLOCK_CAUSAL, CONTEXT_CAUSAL
from lockstitch.sampling.loop import sample
from lockstitch.sampling.uniform import sample_uniform
from lockstitch.sampling.uniform_config import UniformConfig
from lockstitch.stitching.inputs import generate_problems
from side_by_side import Results, clock, compare, parse, peak_memory, timed
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from lockstitch import embedded_model

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from fast_dllm_reference import fast_dllm
from llada_reference import llada_loop
from models import random_diffusion_gemma
from uniform_reference import generate_with_noise_of, generation_arguments

EMBEDDED, TASK = "embedded", get_task("arithmetic")
BATCHES = (8, 32)
BLOCK = 32  # of the larger model and of the layouts whose blocks are cached
SHORT = 8  # of the embedded model, whose canvas has 48 positions
CANVAS, NEW, PROMPT, N = 128, 256, 512, 8
SWEPT_BLOCKS, SWEPT_THRESHOLDS = (12, 24, 48), (0.7, 0.8, 0.9, 0.95, 0.98, 0.99)  # 12 is about a line
POINT = 0.01
FAST = {"block_length": 12, "threshold": 0.9}  # Fast-dLLM's threshold
UNCACHED = {"block_length": 12, "policy": "threshold", "threshold": 0.95}


def load(model):
    """The denoiser of a directory, or the embedded arithmetic one. Where no mask token is named the last id serves."""
    path = str(embedded_model("arithmetic")) if model == EMBEDDED else model
    tokenizer = AutoTokenizer.from_pretrained(path)
    mask_id = len(tokenizer) - 1 if tokenizer.mask_token_id is None else None
    return Denoiser.from_pretrained(path, dtype=torch.float32, device="cpu", mask_id=mask_id)


def random_prompts(denoiser, lengths, seed=0):
    """Prompts of random ordinary tokens."""
    rng = random.Random(seed)
    special = {denoiser.mask_id, denoiser.pad_id, *denoiser.eos_ids}
    ordinary = [i for i in range(denoiser.model.config.vocab_size) if i not in special]
    return [[rng.choice(ordinary) for _ in range(length)] for length in lengths]


def canvases_of(trajectories):
    return [list(t.canvas_ids) for t in trajectories]


def must_agree(name, ours, expected):
    """Ends the benchmark where tokens differ."""
    other = sum(a != b for one, two in zip(ours, expected, strict=True) for a, b in zip(one, two, strict=True))
    if other:
        raise SystemExit(f"{name}: {other} of {sum(map(len, expected))} tokens differ")


def result(runs, **more):
    """A comparison's entry: the run with the least ratio speaks for it."""
    least = min(runs, key=lambda label: runs[label]["ratio"])
    return {"ratio": runs[least]["ratio"], "quartiles": runs[least]["quartiles"], "run": least, **more, "runs": runs}


class Embedded:
    """Whole runs on held-out problems of the embedded model's task, whose rows end at different lengths."""

    def __init__(self, denoiser, arguments):
        self.denoiser, self.repeats, self.problems = denoiser, arguments.repeats, arguments.accuracy
        self.length = TASK.canvas_length

    def prompts(self, count, seed=0):
        return self.denoiser.encode([TASK.prompt(p.question) for p in problems(count, seed)])

    def plain(self, prompts):
        """Completions of the published loop: what stands up to the first end-of-sequence token."""
        canvases = llada_loop(self.denoiser, prompts, self.length, SHORT, self.length)
        ends = self.denoiser.eos_ids
        return [row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))] for row in canvases]

    def ours(self, prompts, **settings):
        config = SamplerConfig(**{"canvas_length": self.length, "block_length": SHORT, **settings})
        return [list(t.completion_ids) for t in sample(self.denoiser, prompts, config)]

    def exact(self):
        runs = {}
        for batch in BATCHES:
            prompts = self.prompts(batch)
            plain = self.plain(prompts)
            must_agree(f"exact, batch {batch}", self.ours(prompts), plain)
            tokens = sum(map(len, plain))
            sides = {
                "loop": timed(lambda p=prompts: self.plain(p)),
                "exact": timed(lambda p=prompts: self.ours(p)),
            }
            found = compare(f"exact, batch {batch}", "loop", sides, self.repeats)
            runs[f"batch {batch}"] = with_rates(found["exact"], dict.fromkeys(("loop", "exact"), tokens))
        return result(
            runs, conditions=f"{TASK.name}, canvas {self.length}, blocks of {SHORT}, whole runs, same completions"
        )

    def fast_dllm(self):
        prompts = self.prompts(BATCHES[0])
        return fast_dllm_runs(
            self.denoiser, prompts, self.length, FAST["block_length"], FAST["threshold"], self.repeats
        )

    def approximate(self):
        greedy, chosen, sweep = self.sweep()
        runs, uncached = (
            {},
            {"settings": UNCACHED, "accuracy": [self.accuracy(seed, **UNCACHED)[0] for seed in (1, 2)]},
        )
        for batch in BATCHES:
            prompts = self.prompts(batch)
            plain, ours = self.plain(prompts), self.ours(prompts, **chosen)
            sides = {
                "loop": timed(lambda p=prompts: self.plain(p)),
                "dual": timed(lambda p=prompts: self.ours(p, **chosen)),
                "no cache": timed(lambda p=prompts: self.ours(p, **UNCACHED)),
            }
            found = compare(f"approximate, batch {batch}", "loop", sides, self.repeats)
            tokens = {"loop": sum(map(len, plain)), "dual": sum(map(len, ours))}
            runs[f"batch {batch}"], uncached[f"batch {batch}"] = with_rates(found["dual"], tokens), found["no cache"]
        (before, _), (after, nfe) = (self.accuracy(2, **settings) for settings in (greedy, chosen))
        confirmed = {"n": self.problems, "greedy": before, "chosen": after, "nfe": nfe}
        return result(
            runs,
            conditions=f"{TASK.name}, whole runs",
            settings=chosen,
            accuracy=confirmed,
            sweep=sweep,
            uncached=uncached,
        )

    def sweep(self):
        """The better greedy settings, the fastest ones within a point of their accuracy, and accuracy and NFE of all."""
        greedy = [{"block_length": block} for block in SWEPT_BLOCKS]
        fast = [
            {"block_length": block, "policy": "threshold", "threshold": threshold, "cache": "dual"}
            for block in SWEPT_BLOCKS
            for threshold in SWEPT_THRESHOLDS
        ]
        sweep = []
        for settings in tqdm([*greedy, *fast], desc="accuracy"):
            accuracy, nfe = self.accuracy(1, **settings)
            sweep.append({**settings, "accuracy": accuracy, "nfe": nfe})
        accuracies = [row["accuracy"] for row in sweep]
        best = max(accuracies[: len(greedy)])
        least = min(best - POINT, max(accuracies[len(greedy) :]))  # the most accurate one, where none is so close
        within = [one for one, accuracy in zip(fast, accuracies[len(greedy) :], strict=True) if accuracy >= least]
        prompts = self.prompts(BATCHES[-1])
        cost = [min(timed(lambda one=one: self.ours(prompts, **one))() for _ in range(3)) for one in within]
        return greedy[accuracies.index(best)], within[cost.index(min(cost))], sweep

    def accuracy(self, seed, **settings):
        """Share of right answers and mean forward passes."""
        given = problems(self.problems, seed)
        config = SamplerConfig(canvas_length=self.length, batch_size=128, **settings)
        drawn = sample(self.denoiser, [TASK.prompt(p.question) for p in given], config)
        right = [
            bool(TASK.is_correct(p.question, p.answer, TASK.extract(t.text) or ""))
            for p, t in zip(given, drawn, strict=True)
        ]
        return statistics.mean(right), statistics.mean(t.ledger.nfe for t in drawn)

    def memory(self):
        prompts = self.prompts(BATCHES[-1])
        return memory(lambda: self.plain(prompts), lambda: self.ours(prompts), f"{TASK.name}, batch {len(prompts)}")


class Larger:
    """Steps in the middle of a run, on any full-attention model."""

    def __init__(self, denoiser, arguments):
        self.denoiser, self.repeats = denoiser, arguments.repeats
        self.steps = cache(self._steps)  # `exact` and `approximate` share the loop's turns

    def batch(self, count, canvas=CANVAS):
        """Prompts of 16 to 64 tokens, and canvases of which the third block of four is open."""
        prompts = random_prompts(self.denoiser, [16 + 48 * i // (count - 1) for i in range(count)])
        canvases = random_prompts(self.denoiser, [canvas] * count, seed=1)
        for row in canvases:
            row[2 * BLOCK : 3 * BLOCK] = [None] * BLOCK
        return prompts, canvases

    def plain(self, prompts, canvases):
        """One step of the published loop."""
        return llada_loop(self.denoiser, prompts, CANVAS, BLOCK, CANVAS // BLOCK, 0.0, canvases)

    def ours(self, prompts, canvases, steps, cache="none"):
        """So many steps of the open block."""
        config = SamplerConfig(CANVAS, BLOCK, steps=steps * CANVAS // BLOCK, stop_at_eos=False, cache=cache)
        return canvases_of(sample(self.denoiser, prompts, config, canvases=canvases))

    @torch.inference_mode()
    def body(self, prompts, canvases):
        """A pass without the output head over the same columns, which no exact step can do without."""
        denoiser, width = self.denoiser, max(map(len, prompts))
        ids_BL = torch.full((len(prompts), width + CANVAS), denoiser.pad_id)
        for b, (prompt, canvas) in enumerate(zip(prompts, canvases, strict=True)):
            shown = [denoiser.mask_id if token is None else token for token in canvas]
            ids_BL[b, width - len(prompt) :] = torch.tensor([*prompt, *shown])
        length_B = torch.tensor([len(prompt) for prompt in prompts])
        real_BL = (torch.arange(width + CANVAS) >= (width - length_B)[:, None]).long()
        positions_BL = (real_BL.cumsum(1) - 1).clamp(min=0)
        denoiser.model.base_model(input_ids=ids_BL, attention_mask=real_BL, position_ids=positions_BL, use_cache=False)

    def dual_block(self, prompts, canvases):
        """Seconds of a block at one token a step: the opening pass and 31 times the mean of three later ones."""
        began = []
        handle = self.denoiser.model.register_forward_pre_hook(lambda *_: began.append(clock()))
        self.ours(prompts, canvases, 4, "dual")
        ended = clock()
        handle.remove()
        return began[1] - began[0] + (BLOCK - 1) * (ended - began[1]) / 3

    def _steps(self, batch):
        """By side, seconds of a block at one token a step, compared."""
        prompts, canvases = self.batch(batch)
        must_agree(f"one step, batch {batch}", self.ours(prompts, canvases, 1), self.plain(prompts, canvases))
        loop = timed(lambda: self.plain(prompts, canvases))
        exact = timed(lambda: self.ours(prompts, canvases, 2))
        sides = {
            "loop": lambda: BLOCK * loop(),
            "exact": lambda: BLOCK * exact() / 2,
            "dual": lambda: self.dual_block(prompts, canvases),
        }
        if batch == BATCHES[0]:
            body = timed(lambda: self.body(prompts, canvases))
            sides["body"] = lambda: BLOCK * body()
        return compare(f"steps, batch {batch}", "loop", sides, self.repeats)

    def exact(self):
        runs = {}
        for batch in BATCHES:
            found = self.steps(batch)
            run = with_rates(found["exact"], dict.fromkeys(("loop", "exact"), batch * BLOCK))
            if "body" in found:
                run["most that is possible"] = found["body"]["ratio"]
            runs[f"batch {batch}"] = run
        return result(runs, conditions=STEPS, whole_run=self.whole_run())

    def approximate(self):
        runs = {
            f"batch {batch}": with_rates(self.steps(batch)["dual"], dict.fromkeys(("loop", "dual"), batch * BLOCK))
            for batch in BATCHES
        }
        return result(runs, conditions=STEPS)

    def fast_dllm(self):
        prompts = random_prompts(self.denoiser, [16 + 48 * i // 7 for i in range(BATCHES[0])])
        return fast_dllm_runs(self.denoiser, prompts, 2 * BLOCK, BLOCK, FAST["threshold"], self.repeats)

    def whole_run(self):
        """A short canvas, one token a step, from beginning to end: the tokens must be the same."""
        prompts = random_prompts(self.denoiser, (8, 24))
        seconds, drawn = {}, {}
        for side in ("loop", "exact"):
            began = clock()
            if side == "loop":
                drawn[side] = llada_loop(self.denoiser, prompts, 32, 16, 32)
            else:
                config = SamplerConfig(32, 16, stop_at_eos=False)
                drawn[side] = canvases_of(sample(self.denoiser, prompts, config))
            seconds[side] = clock() - began
        must_agree("whole run", drawn["exact"], drawn["loop"])
        return {
            "ratio": seconds["loop"] / seconds["exact"],
            "seconds": seconds,
            "conditions": "batch 2, canvas 32, blocks of 16, 32 steps, all tokens the same",
        }

    def memory(self):
        prompts, canvases = self.batch(BATCHES[0])
        return memory(
            lambda: self.plain(prompts, canvases),
            lambda: self.ours(prompts, canvases, 1),
            f"batch {BATCHES[0]}, canvas {CANVAS}, block of {BLOCK}, its first step",
        )


STEPS = (
    f"steps of an open block of {BLOCK} in a canvas of {CANVAS}, prompts of 16 to 64 tokens, as at one token a step"
)


def fast_dllm_runs(denoiser, prompts, length, block, threshold, repeats):
    """Whole runs of Fast-dLLM's loop and of this sampler, by cache and batch."""
    runs = {}
    for kept in ("none", "prefix", "dual"):
        config = SamplerConfig(length, block, policy="threshold", threshold=threshold, cache=kept, stop_at_eos=False)

        def loop(given, kept=kept):
            return [fast_dllm(denoiser, prompt, length, block, threshold, kept) for prompt in given]

        def ours(given, config=config):
            return canvases_of(sample(denoiser, given, config))

        must_agree(f"fast_dllm, {kept}", ours(prompts), loop(prompts))
        for label, given in (("batch 1", prompts[len(prompts) // 2 :][:1]), (f"batch {len(prompts)}", prompts)):
            name = f"{kept}, {label}"
            sides = {"loop": timed(lambda g=given: loop(g)), "ours": timed(lambda g=given: ours(g))}
            runs[name] = compare(f"fast_dllm, {name}", "loop", sides, repeats)["ours"]
    lengths = f"{min(map(len, prompts))} to {max(map(len, prompts))}"
    return result(
        runs, conditions=f"canvas {length}, blocks of {block}, threshold {threshold}, prompts of {lengths} tokens"
    )


def problems(count, seed):
    return [given.problem for given in generate_problems(TASK, count, seed)]


def with_rates(found, tokens):
    """A run with the tokens per second of its sides."""
    return {**found, "tokens_per_second": {side: tokens[side] / s for side, s in found["seconds"].items()}}


def memory(loop, ours, conditions):
    """Peaks of both sides, which are the same at every run."""
    peaks = {"loop": peak_memory(loop), "exact": peak_memory(ours)}
    ratio = peaks["loop"] / peaks["exact"]
    print(f"memory: {ratio:.2f}x ({peaks['loop'] / 1e6:.1f} MB against {peaks['exact'] / 1e6:.1f} MB)", flush=True)
    return {"ratio": ratio, "quartiles": [ratio, ratio], "bytes": peaks, "conditions": conditions}


def in_layouts(denoiser, path):
    """The same weights under the two layouts in which finished blocks are kept exactly."""
    for family in (BLOCK_CAUSAL, CONTEXT_CAUSAL):
        model = make_causal(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)).eval()
        yield family.name, Denoiser(model, denoiser.tokenizer, family, denoiser.mask_id)


def without_and_with(name, denoiser, prompts, slow, fast, repeats, **settings):
    """Two ways to draw the same trajectories, as settings."""
    config = {"stop_at_eos": False, "block_length": BLOCK, **settings}
    n = config.pop("n", 1)

    def draw(more):
        return sample(denoiser, prompts, SamplerConfig(**config, **more), n=n)

    (slow_name, slow_settings), (fast_name, fast_settings) = slow, fast
    must_agree(name, canvases_of(draw(fast_settings)), canvases_of(draw(slow_settings)))
    sides = {slow_name: timed(lambda: draw(slow_settings)), fast_name: timed(lambda: draw(fast_settings))}
    return compare(name, slow_name, sides, repeats)[fast_name]


def block_cache(denoiser, path, small, repeats):
    """256 new tokens: two a step in a batch of 8 of a small model, eight a step of one row of a larger one."""
    lengths, steps = ((20, 52) * 4, NEW // 2) if small else ((20,), NEW // 8)
    prompts = random_prompts(denoiser, lengths)
    runs = {
        name: without_and_with(
            f"block_cache, {name}",
            model,
            prompts,
            ("off", {"cache": "none"}),
            ("on", {"cache": "block"}),
            repeats,
            canvas_length=NEW,
            steps=steps,
        )
        for name, model in in_layouts(denoiser, path)
    }
    return result(runs, conditions=f"{NEW} new tokens in blocks of {BLOCK}, {steps} steps, batch {len(lengths)}")


def shared_prefix(denoiser, path, repeats):
    """32 new tokens, eight a step, at temperature 1."""
    prompts = random_prompts(denoiser, (PROMPT,))
    runs = {
        name: without_and_with(
            f"shared_prefix, {name}",
            model,
            prompts,
            ("separate", {"batch_size": 1}),
            ("together", {}),
            repeats,
            canvas_length=BLOCK,
            steps=BLOCK // 8,
            temperature=1.0,
            cache="block",
            n=N,
        )
        for name, model in in_layouts(denoiser, path)
    }
    return result(runs, conditions=f"{N} trajectories of a {PROMPT}-token prompt, {BLOCK} new tokens, 8 a step")


LARGE, SMALL = 16384, 2048  # vocabularies of the random DiffusionGemma
NEVER = 1e-9  # nats: a mean entropy that no block of a random model falls below


def diffusion_gemma_model(vocabulary):
    """Four layers of width 128, one with full attention, and blocks of 32: 3.2M parameters at 16,384 tokens."""
    denoiser = random_diffusion_gemma(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        head_dim=32,
        global_head_dim=32,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
        sliding_window=128,
        moe_intermediate_size=64,
        echo=0.1,
    )
    denoiser.model.config.canvas_length = BLOCK
    return denoiser


def diffusion_gemma(repeats):
    """Against `generate`, and N trajectories against N separate runs with a small and a large vocabulary."""
    large, small = diffusion_gemma_model(LARGE), diffusion_gemma_model(SMALL)
    generator = torch.Generator().manual_seed(0)
    one, mixed, long = (
        [torch.randint(3, SMALL, (length,), generator=generator).tolist() for length in lengths]
        for lengths in ((64,), (17, 31, 48, 77), (PROMPT,))
    )
    schedule = {"max_denoising_steps": 8, "confidence_threshold": NEVER, "stop_at_eos": False}
    config, block = UniformConfig(2 * BLOCK, **schedule), UniformConfig(BLOCK, **schedule)
    drawn = sample_uniform(large, one, config)
    must_agree(
        "diffusion_gemma",
        canvases_of(drawn),
        [generate_with_noise_of(large, t.prompt_ids, config, t.seed)[0] for t in drawn],
    )

    def generate(prompts):
        """A batch, padded on the left."""
        width = max(map(len, prompts))
        ids = torch.tensor([[large.pad_id] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        return large.model.generate(ids, attention_mask=mask, **generation_arguments(large, config))

    runs, shared = {}, {}
    for label, prompts in (("one prompt of 64 tokens", one), ("4 prompts of 17 to 77 tokens", mixed)):
        sides = {
            "generate": timed(lambda p=prompts: generate(p)),
            "ours": timed(lambda p=prompts: sample_uniform(large, p, config)),
        }
        runs[label] = compare(f"diffusion_gemma, {label}", "generate", sides, repeats)["ours"]
    for label, denoiser in (("small vocabulary", small), ("large vocabulary", large)):
        sides = {
            "separate": timed(lambda d=denoiser: [sample_uniform(d, long, block, seed=k) for k in range(N)]),
            "together": timed(lambda d=denoiser: sample_uniform(d, long, block, n=N)),
        }
        shared[label] = compare(f"diffusion_gemma, {N} of a prompt, {label}", "separate", sides, repeats)["together"]
    return result(
        runs,
        conditions=f"2 blocks of {BLOCK}, 8 steps each, vocabulary {LARGE}",
        parameters=sum(weight.numel() for weight in large.model.parameters()),
        shared_prefix=shared,
    )


def main():
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="some of the comparisons")
    parser.add_argument("--accuracy", type=int, default=500, metavar="N", help="problems of the embedded sweep (500)")
    arguments = parse(parser, EMBEDDED)
    small = arguments.model == EMBEDDED
    conditions = {
        "model": arguments.model,
        "repeats": arguments.repeats,
        "problems": arguments.accuracy if small else None,
    }
    try:
        results = Results(arguments.json, conditions)
    except ValueError as error:
        parser.error(str(error))
    denoiser = load(arguments.model)
    path = denoiser.model.config._name_or_path
    steps = (Embedded if small else Larger)(denoiser, arguments)
    measures = {
        "exact": steps.exact,
        "fast_dllm": steps.fast_dllm,
        "approximate": steps.approximate,
        "block_cache": lambda: block_cache(denoiser, path, small, arguments.repeats),
        "shared_prefix": lambda: shared_prefix(denoiser, path, arguments.repeats),
        "diffusion_gemma": lambda: diffusion_gemma(arguments.repeats),
        "memory": steps.memory,
    }
    for name in arguments.only:
        results.add(name, measures[name])


NAMES = ("exact", "fast_dllm", "approximate", "block_cache", "shared_prefix", "diffusion_gemma", "memory")

if __name__ == "__main__":
    main()
