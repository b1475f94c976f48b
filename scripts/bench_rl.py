"""How fast an optimisation step of reinforcement learning is, and where a training step's time goes.

    python scripts/bench_rl.py --json embedded.json                     # the embedded model, all weights trained
    python scripts/bench_rl.py --model DIR --json smollm2.json          # a Llama, Qwen2 or Qwen3 (fetch_smollm2.py), LoRA
    python scripts/bench_rl.py --only memory

step     One optimisation step: likelihoods of the policy, of the one that sampled and of the reference, loss, backward pass,
         AdamW. d1's settings (mean-field likelihoods, 15% of the prompt masked anew in each inner iteration, a ratio per
         token, beta 0.04), a group of 8 completions of 128 tokens, a prompt of 64. `DiffusionGRPOTrainer`'s own methods
         against the plain form of `plain_grpo.py`: whole logits in every pass, old likelihoods scored beforehand for all
         inner iterations. A generation's cost divided by its 12 inner iterations, and that of one with a single iteration.
         Twice: with masks of its own in each completion's prompt, as d1's code has it, and with one prompt for the group
         (`share_prompt_mask`). The plain form passes every completion either way.
dropped  The same on the embedded model with two groups, of which one has rewards that are all the same: the trainer does not
         score it. Without a beta, whose pull would go with it.
memory   The most memory that a step takes beyond what was taken before, each form in a process of its own (Linux): what
         becomes resident, and what tensors hold.
shares   Whole training steps of `DiffusionGRPOTrainer` on sudoku, for d1 and for trajectory likelihoods: the shares of
         rollouts, rewards, likelihoods scored beforehand, forward and backward passes, and the optimizer.

exact    An update of the embedded model on rollouts of the fork policy (threshold .8, temperature .8), 8 groups of 8
         sudokus: passes of the model, rows in them, and seconds of likelihoods, loss, backward pass and AdamW, for the three
         estimators whose ratios are the sampling policy's: forks, trajectory, autoregressive. Before that all three must
         have the same log-likelihoods where they score the same: on rollouts whose every step is a fork.

Both forms get the same masked prompts and start from the same weights. Before anything is timed their losses must agree to
1e-5, and what their updates do to the weights to a hundredth.

On the embedded model a generation and its 12 steps are run whole. On a larger one that takes minutes, but inner iterations
all cost the same. What is run is a generation with a single one, which scores no old likelihoods, and one scoring of these
beside it: of them the plain form pays 12 in 12 steps, the trainer 11.
"""

import argparse
import ctypes
import multiprocessing
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from bench_sampling import EMBEDDED, load
from datasets import Dataset
from lockstitch.rewards.puzzle_rewards import sudoku_reward
from lockstitch.rewards.tasks.named import get_task
from lockstitch.rewards.tasks.task import training_problems
from lockstitch.rl.estimator_config import EstimatorConfig
from lockstitch.rl.estimators import estimate
from lockstitch.rl.grpo import DiffusionGRPOTrainer
from lockstitch.rl.grpo_config import DiffusionGRPOConfig
from lockstitch.rl.lora import lora_config
from lockstitch.rl.scoring import Canvases, Scorer
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample
from rl_steps import CANVAS, D1, GROUP, PROMPT, QUIET, Steps, trained
from side_by_side import Results, compare, parse, peak_memory, timed
from transformers import TrainerCallback

from lockstitch import embedded_model

ITERATIONS = 12
LOSS_APART, WEIGHTS_APART = 1e-5, 1e-2
M_MMAP_THRESHOLD = (
    -3
)  # of glibc's mallopt: blocks from this size on are mapped one by one, and unmapped when they are freed
OURS = {"ours": {}, "ours, one masked prompt": {"share_prompt_mask": True}}
CONDITIONS = f"a group of {GROUP} completions of {CANVAS} tokens, a prompt of {PROMPT}"


def make(model, iterations, **settings):
    """A model with LoRA (the embedded one without), and its generation."""
    denoiser = load(model)
    return Steps(denoiser, iterations, None if model == EMBEDDED else lora_config(denoiser, 16, 32), **settings)


def must_agree(name, model, **settings):
    """Ends the benchmark where losses or updates of two inner iterations differ; else by how much they do."""
    plain, ours = make(model, 2, **settings), make(model, 2, **settings)
    before = trained(plain.policy)
    losses = plain.plain(), ours.ours()
    loss = max(abs(a - b) for a, b in zip(*losses, strict=True))
    moved = trained(plain.policy) - before
    weights = float((trained(ours.policy) - before - moved).norm() / moved.norm())
    if not (loss <= LOSS_APART and weights <= WEIGHTS_APART):
        raise SystemExit(f"{name}: losses {losses[0]} and {losses[1]}, updates {weights:.1e} apart")
    return {"losses": loss, "updates": weights}


def step(model, arguments):
    """Ratios of whole generations on the embedded model, of one step and one scoring on others."""
    size = {} if model == EMBEDDED else {"prompt": 16, "canvas": 32}
    apart = {form: must_agree(form, model, **size, **settings) for form, settings in OURS.items()}
    if model == EMBEDDED:
        runs = whole(f"{ITERATIONS} iterations", ITERATIONS, arguments) | whole("1 iteration", 1, arguments)
    else:
        runs = parts(model, arguments)
    return {"conditions": CONDITIONS, "apart": apart, "runs": runs}


def whole(name, iterations, arguments, ours=OURS, **more):
    """Generations and all of their updates on the embedded model, by the step."""
    works = {"plain": make(EMBEDDED, iterations, **more).plain}
    works |= {form: make(EMBEDDED, iterations, **settings, **more).ours for form, settings in ours.items()}
    sides = {form: lambda work=work: timed(work)() / iterations for form, work in works.items()}
    found = compare(name, "plain", sides, arguments.repeats)
    return {f"{form}, {name}": run for form, run in found.items()}


def parts(model, arguments):
    """One step of a generation of one, and a scoring of old likelihoods: what they make of 12 and of one."""
    steps = {form: make(model, 1, **settings) for form, settings in {"plain": {}, **OURS}.items()}
    singles = {form: [] for form in steps}
    losses = {form: [] for form in steps}

    def side(form, work, old, share):
        def seconds():
            singles[form].append(timed(lambda: losses[form].extend(work()))())
            return singles[form][-1] + share * timed(old)()

        return seconds

    sides = {
        form: side(form, one.plain, one.plain_old, 1)
        if form == "plain"
        else side(form, one.ours, one.ours_old, 1 - 1 / ITERATIONS)
        for form, one in steps.items()
    }
    found = compare(f"{ITERATIONS} iterations", "plain", sides, arguments.repeats)
    if not abs(losses["plain"][0] - losses["ours"][0]) <= LOSS_APART:
        raise SystemExit(f"losses of the first step: {losses['plain'][0]} and {losses['ours'][0]}")
    runs = {f"{form}, {ITERATIONS} iterations": run for form, run in found.items()}
    recorded = {form: iter(seconds).__next__ for form, seconds in singles.items()}
    again = compare("1 iteration", "plain", recorded, arguments.repeats)
    return runs | {f"{form}, 1 iteration": run for form, run in again.items()}


def dropped(arguments):
    """Two groups, one without variance."""
    runs = whole("1 of 2 groups dropped", ITERATIONS, arguments, {"ours": {}}, groups=2, beta=0.0)
    return {"conditions": f"{CONDITIONS}, beta 0, no variance in one of two groups", "runs": runs}


FORKING = {"canvas_length": 20, "policy": "threshold", "fallback": "leftmost", "temperature": 0.8}


def forked(threshold, groups):
    """The embedded model with rollouts of the fork policy, and random advantages."""
    task, denoiser = get_task("sudoku"), Denoiser.from_pretrained(str(embedded_model("sudoku-early")), device="cpu")
    prompts = [task.prompt(p.question) for p in training_problems(task, groups, seed=0)]
    rollouts = sample(denoiser, prompts, SamplerConfig(threshold=threshold, **FORKING), n=GROUP, seed=0)
    advantage_B = torch.randn(len(rollouts), generator=torch.Generator().manual_seed(2))
    return denoiser, Canvases.from_trajectories(rollouts, denoiser), advantage_B


def update(estimator, denoiser, canvases, advantage_B, optimizer=None):
    """One update (without an optimizer, its likelihoods alone): each completion's mean over the tokens that are scored.

    Returns the mean of log-likelihoods times advantages: the value of a loss at ratio 1 would say nothing of its tokens.
    """
    config = EstimatorConfig(estimator)
    logp_BG = estimate(config, Scorer(denoiser, denoiser.model, FORKING["temperature"]), canvases)
    scored_BG = logp_BG != 0
    mean_B = (((logp_BG - logp_BG.detach()).exp() * scored_BG).sum(1)) / scored_BG.sum(1).clamp(min=1)
    loss = -(advantage_B * mean_B).mean()
    if optimizer is not None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float((advantage_B * logp_BG.detach().sum(1)).mean())


def exact(arguments):
    """Passes, rows and seconds of an update, by estimator."""
    estimators = ("trajectory", "forks", "autoregressive")
    every = forked(1.01, 2)
    losses = {name: update(name, *every) for name in estimators}
    if max(losses.values()) - min(losses.values()) > LOSS_APART:
        raise SystemExit(f"where every step is a fork, log-likelihoods are {losses}")
    sides, counts = {}, {}
    for name in estimators:
        denoiser, canvases, advantage_B = forked(0.8, 8)
        optimizer = torch.optim.AdamW(denoiser.model.parameters(), 1e-6)
        seen = []
        handle = denoiser.model.register_forward_pre_hook(
            lambda m, a, kw, seen=seen: seen.append(len(kw["input_ids"])), with_kwargs=True
        )
        with torch.no_grad():
            update(name, denoiser, canvases, advantage_B)
        handle.remove()
        counts[name] = {"passes": len(seen), "rows": sum(seen)}
        print(f"exact: {name} takes {len(seen)} passes over {sum(seen)} rows", flush=True)
        work = (name, denoiser, canvases, advantage_B, optimizer)
        sides[name] = lambda work=work: timed(lambda: update(*work))()
    tokens = int(((canvases.commit_step_BG > 0) & canvases.valid_BG).sum())
    forks = int((canvases.fork_BG & canvases.valid_BG).sum())
    runs = compare("an update", "trajectory", sides, arguments.repeats)
    return {"losses": losses, "forks": forks, "tokens": tokens, "counts": counts, "runs": runs}


def resident(field):
    """Bytes of this process's memory (Linux): `VmRSS` now, `VmHWM` at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak_of(form, model, threads):
    """The most bytes of a scoring of old likelihoods and a generation of one update, beyond what was there before: that
    become `resident`, and that `tensors` hold at a time."""
    ctypes.CDLL(None).mallopt(
        M_MMAP_THRESHOLD, 1 << 20
    )  # or the allocator keeps what is freed, in gaps, some of the time
    torch.set_num_threads(threads)
    steps = make(model, 1, **OURS.get(form, {}))
    works = (steps.plain_old, steps.plain) if form == "plain" else (steps.ours_old, steps.ours)
    steps.columns, columns = steps.generation(GROUP, 2, 2), steps.columns
    for work in works:  # code and the optimizer's state become resident
        work()
    steps.columns = columns
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = resident("VmRSS")
    for work in works:
        work()
    return {"resident": resident("VmHWM") - before, "tensors": max(peak_memory(work) for work in works)}


def memory(model):
    """Peaks of all forms, each in a process that has done nothing else, and as shares of the plain form's."""
    peaks, shares = {}, {}
    for form in ("plain", *OURS):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            peaks[form] = alone.submit(peak_of, form, model, torch.get_num_threads()).result()
        shares[form] = {kind: size / peaks["plain"][kind] for kind, size in peaks[form].items()}
        listed = ", ".join(
            f"{size / 1e6:.0f} MB {kind} ({shares[form][kind]:.2f})" for kind, size in peaks[form].items()
        )
        print(f"memory: {form} {listed}", flush=True)
    return {"conditions": CONDITIONS, "bytes": peaks, "shares": shares}


class Clocks:
    """Seconds by name; what is measured inside another is taken from it."""

    def __init__(self, now=time.perf_counter):
        self.seconds, self.inside, self.now, self.since = Counter(), [], now, 0.0

    def _turn(self):
        now = self.now()
        if self.inside:
            self.seconds[self.inside[-1]] += now - self.since
        self.since = now

    def enter(self, name):
        self._turn()
        self.inside.append(name)

    def leave(self):
        self._turn()
        self.inside.pop()

    @contextmanager
    def of(self, name):
        self.enter(name)
        yield
        self.leave()

    def on(self, owner, method, name):
        """Measures all calls of an object's method from now on."""
        run = getattr(owner, method)

        def measured(*arguments, **options):
            with self.of(name):
                return run(*arguments, **options)

        setattr(owner, method, measured)


class FromStep(TrainerCallback):
    """Forgets what was measured up to a step."""

    def __init__(self, clocks, number):
        self.clocks, self.number = clocks, number

    def on_step_end(self, args, state, control, **more):
        if state.global_step == self.number:
            self.clocks.seconds.clear()


TRAINED = {  # 8 groups of 8, whose canvas is denoised 2 tokens a step (d1) and 4 (as the recipe of the embedded model)
    "d1": {**D1, "num_iterations": ITERATIONS, "steps": 10, "temperature": 0.9},
    "trajectory": {
        "estimator": "trajectory",
        "policy_loss": "token",
        "loss_type": "bnpo",
        "steps": 5,
        "temperature": 1.0,
    },
}
PARTS = ("rollouts", "rewards", "scoring beforehand", "forward and loss", "backward", "optimizer", "rest")


def shares():
    """By setting, the share of each part in a generation and its steps, and the seconds of a step."""
    task, found = get_task("sudoku"), {}
    problems = training_problems(task, 512, seed=0)
    data = Dataset.from_list([{"prompt": task.prompt(p.question), "question": p.question} for p in problems])
    for name, settings in TRAINED.items():
        warm = settings.get("num_iterations", 1)
        steps = 2 * ITERATIONS
        args = DiffusionGRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=8 * GROUP,
            num_generations=GROUP,
            max_steps=warm + steps,
            max_completion_length=task.canvas_length,
            learning_rate=1e-5,
            **{**QUIET, **settings},
        )
        denoiser, clocks = Denoiser.from_pretrained(str(embedded_model("sudoku-early")), device="cpu"), Clocks()
        trainer = DiffusionGRPOTrainer(
            denoiser, sudoku_reward, args, train_dataset=data, callbacks=[FromStep(clocks, warm)]
        )
        for method, part in (
            ("_generate_single_turn", "rollouts"),
            ("_calculate_rewards", "rewards"),
            ("_score_before", "scoring beforehand"),
            ("compute_loss", "forward and loss"),
            ("create_optimizer", "rest"),
            ("train", "rest"),
        ):
            clocks.on(trainer, method, part)
        clocks.on(trainer.accelerator, "backward", "backward")
        clocks.on(trainer.accelerator, "clip_grad_norm_", "optimizer")
        optimizer = trainer.create_optimizer()
        optimizer.register_step_pre_hook(lambda *_, c=clocks: c.enter("optimizer"))
        optimizer.register_step_post_hook(lambda *_, c=clocks: c.leave())
        trainer.train()
        total = sum(clocks.seconds.values())
        found[name] = {"seconds": total / steps, "shares": {part: clocks.seconds[part] / total for part in PARTS}}
        listed = ", ".join(f"{part} {share:.1%}" for part, share in found[name]["shares"].items())
        print(f"shares, {name}: {total / steps:.3f} s a step; {listed}", flush=True)
    return found


def main():
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=NAMES,
        help="some of the figures; by default `step` and `memory`, and on the embedded model all",
    )
    arguments = parse(parser, EMBEDDED)
    small = arguments.model == EMBEDDED
    only = arguments.only or (NAMES if small else ("step", "memory"))
    if not small and {"dropped", "shares", "exact"} & set(only):
        parser.error("--only: dropped, shares and exact are of the embedded model")
    try:
        results = Results(arguments.json, {"model": arguments.model, "repeats": arguments.repeats})
    except ValueError as error:
        parser.error(str(error))
    measures = {
        "step": lambda: step(arguments.model, arguments),
        "dropped": lambda: dropped(arguments),
        "memory": lambda: memory(arguments.model),
        "shares": shares,
        "exact": lambda: exact(arguments),
    }
    for name in only:
        results.add(name, measures[name])


NAMES = ("step", "dropped", "memory", "shares", "exact")

if __name__ == "__main__":
    main()
