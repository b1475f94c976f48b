"""How far do estimators agree on where to go? Their first policy gradients on one batch of rollouts, side by side.

    python scripts/compare_gradients.py --task sudoku --prompts 256

At the first inner iteration every ratio is 1, and what an estimator asks for is `sum A grad log-likelihood`. The gradient
of `trajectory`, with a pass for every denoising step, is the policy gradient of the sampler that drew the rollouts: without
bias. The batch is cut into two halves, prompts apart, so that noise and bias can be told from one another:

- `halves`: cosine of an estimator's gradients on the two halves, its share of signal;
- `trajectory`: cosine with the trajectory's gradient on the *other* half, divided by the root of both estimators' `halves`
  (Spearman's correction for attenuation): 1 would be the same direction, but for noise.

Rewards are the task's own; advantages are `R - mean` of the group; groups without variance are left out.
"""

import argparse

import torch
from lockstitch.rewards.plugins import load_reward
from lockstitch.rewards.tasks.named import get_task
from lockstitch.rewards.tasks.task import training_problems
from lockstitch.rl.estimator_config import EstimatorConfig
from lockstitch.rl.estimators import estimate
from lockstitch.rl.scoring import Canvases, Scorer
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample
from tqdm import tqdm

from lockstitch import embedded_model

GROUP = 8


def estimators(length):
    """What is compared, by name; the first is the yardstick."""
    return {
        "trajectory": EstimatorConfig("trajectory"),
        "trajectory, 2 segments": EstimatorConfig("trajectory", segments=2),
        "mean_field": EstimatorConfig("mean_field"),
        "mean_field, prompt masked .15 (d1, wd1)": EstimatorConfig("mean_field", prompt_mask_ratio=0.15),
        "coupled": EstimatorConfig("coupled"),
        "elbo, 2 pairs (espo)": EstimatorConfig("elbo", num_samples=2, mask_schedule="complement"),
        "elbo, 8 pairs": EstimatorConfig("elbo", num_samples=8, mask_schedule="complement"),
        "sandwiched (spg)": EstimatorConfig(
            "sandwiched",
            num_samples=2,
            mask_distribution="block_random",
            eubo_beta=1.0,
            eubo_mix=0.5,
            perturb_ratio=0.15,
            prompt_mask_ratio=0.15,
            block_length=length,
        ),
        "autoregressive": EstimatorConfig("autoregressive"),
    }


def gradient(denoiser, config, canvases, advantage_B, chunk=256):
    """The policy gradient of one estimator on some rows, flat."""
    denoiser.model.zero_grad()
    scorer = Scorer(denoiser, denoiser.model, recomputes=False)
    for start in range(0, len(canvases), chunk):
        rows = slice(start, start + chunk)
        upper_B = advantage_B[rows] < 0 if config.estimator == "sandwiched" else None
        logp_BG = estimate(config, scorer, canvases.rows(rows), 0, upper_B)
        (advantage_B[rows] * logp_BG.sum(1)).sum().backward()
    return torch.cat([p.grad.flatten() for p in denoiser.model.parameters() if p.grad is not None])


def main():
    """Draws the batch, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["sudoku", "countdown"], default="sudoku")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=4, help="tokens a step in the rollouts")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    task, reward = get_task(arguments.task), load_reward(arguments.task)
    denoiser = Denoiser.from_pretrained(str(embedded_model(f"{task.name}-early")))
    problems = list(training_problems(task, arguments.prompts, arguments.seed))
    length = task.canvas_length
    sampler = SamplerConfig(
        canvas_length=length, steps=-(-length // arguments.tokens), temperature=1.0, batch_size=512
    )
    prompts = [task.prompt(problem.question) for problem in problems]
    drawn = sample(denoiser, prompts, sampler, n=GROUP, seed=arguments.seed)
    drawn.sort(key=lambda one: one.prompt)
    rewards = reward(
        prompts=[prompts[one.prompt] for one in drawn],
        completions=[one.text for one in drawn],
        question=[problems[one.prompt].question for one in drawn],
    )
    reward_PK = torch.tensor(rewards, dtype=torch.float32).view(-1, GROUP)
    advantage_PK = reward_PK - reward_PK.mean(1, keepdim=True)
    kept_P = advantage_PK.abs().sum(1) > 0
    print(
        f"{task.name}: {len(prompts)} prompts x {GROUP}, mean reward {reward_PK.mean():.3f}, "
        f"{int(kept_P.sum())} groups with variance"
    )
    rows = kept_P.repeat_interleave(GROUP).nonzero()[:, 0].tolist()
    canvases = Canvases.from_trajectories([drawn[i] for i in rows], denoiser)
    advantage_B = advantage_PK[kept_P].flatten()
    half = int(kept_P.sum()) // 2 * GROUP
    halves = (slice(0, half), slice(half, 2 * half))
    found = {
        name: [gradient(denoiser, config, canvases.rows(part), advantage_B[part]) for part in halves]
        for name, config in tqdm(estimators(length).items())
    }

    def cosine(a, b):
        return float(torch.nn.functional.cosine_similarity(a, b, dim=0))

    true_1, true_2 = found["trajectory"]
    signal = cosine(true_1, true_2)
    print("\n| estimator | halves | trajectory |\n|---|---|---|")
    for name, (one, two) in found.items():
        own = cosine(one, two)
        across = (cosine(one, true_2) + cosine(two, true_1)) / 2
        print(f"| {name} | {own:.2f} | {across / (max(own, 1e-9) * signal) ** 0.5:.2f} |")


if __name__ == "__main__":
    main()
