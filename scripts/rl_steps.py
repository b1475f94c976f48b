"""A generation of random completions and the optimisation steps that follow from it, the trainer's and the plain form's.

What `bench_rl.py` measures. The trainer's steps are `DiffusionGRPOTrainer`'s own methods: likelihoods that have to be known
beforehand, then for each inner iteration its loss, the backward pass, and AdamW. Rollouts and rewards are not run:
completions are random tokens, advantages random numbers. The plain form (`plain_grpo.py`) gets the same masked prompts.

Axes: B completions, G canvas positions.
"""

import tempfile

import torch
from bench_sampling import random_prompts
from datasets import Dataset
from lockstitch.recipes.layers import preset_file
from lockstitch.rl.grpo import DiffusionGRPOTrainer
from lockstitch.rl.grpo_config import DiffusionGRPOConfig
from lockstitch.rl.masks import Draw
from plain_grpo import plain_generation, token_logps

from lockstitch.options import read_yaml

GROUP, CANVAS, PROMPT = 8, 128, 64
# What the preset says of estimator, loss and optimizer; sizes and the rollout are the benchmark's.
OF_D1 = ("estimator", "prompt_mask_ratio", "policy_loss", "loss_type", "scale_rewards", "beta", "use_bias_correction_kl",
         "epsilon", "max_grad_norm", "adam_beta2", "weight_decay")  # fmt: skip
D1 = {name: read_yaml(preset_file("d1"))[name] for name in OF_D1}
QUIET = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
         "logging_steps": 1000}  # fmt: skip
LEARNING_RATE, NUDGE = 1e-4, 5e-3


class Steps:
    """One generation of random completions, and a policy to be trained on it in either form.

    Args:
        denoiser: the model, which is trained in place.
        iterations: updates of a generation.
        adapter: LoRA's configuration, or None to train all weights.
        groups: how many; the rewards of all but the first are all the same.
        prompt, canvas: lengths in tokens.
        settings: go before `D1`.
    """

    def __init__(self, denoiser, iterations, adapter=None, groups=1, prompt=PROMPT, canvas=CANVAS, **settings):
        rows = groups * GROUP
        args = DiffusionGRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=rows,
            num_generations=GROUP,
            max_steps=1,
            num_iterations=iterations,
            max_completion_length=canvas,
            **{**D1, **QUIET, **settings},
        )
        self.args, self.denoiser, self.iterations = args, denoiser, iterations
        torch.manual_seed(0)  # of the adapter
        self.trainer = DiffusionGRPOTrainer(
            denoiser,
            lambda completions, **_: [0.0] * len(completions),
            args,
            Dataset.from_dict({"prompt": ["="]}),
            peft_config=adapter,
        )
        self.trainer.current_gradient_accumulation_steps = 1
        self.policy = self.trainer.model.train()
        self.columns = self.generation(rows, prompt, canvas)
        nudge(self.policy)
        self.optimizer = torch.optim.AdamW(
            [p for p in self.policy.parameters() if p.requires_grad],
            LEARNING_RATE,
            (0.9, args.adam_beta2),
            weight_decay=args.weight_decay,
        )

    def generation(self, rows, prompt, canvas):
        """What rollouts and rewards would have made."""
        prompts = random_prompts(self.denoiser, [prompt] * (rows // GROUP))
        ones_BG = torch.ones(rows, canvas, dtype=torch.long)
        active_B = torch.arange(rows) < (GROUP if self.args.drop_zero_variance else rows)
        generator = torch.Generator().manual_seed(2)
        advantage_B = torch.randn(rows, generator=generator) * (torch.arange(rows) < GROUP)
        columns = {
            "prompt_ids": torch.tensor(prompts).repeat_interleave(GROUP, 0),
            "prompt_mask": torch.ones(rows, prompt, dtype=torch.long),
            "completion_ids": torch.tensor(random_prompts(self.denoiser, [canvas] * rows, seed=1)),
            "completion_mask": ones_BG, "tool_mask": ones_BG, "commit_step": ones_BG, "block": 0 * ones_BG,
            "entropy": torch.zeros(rows, canvas), "confidence": ones_BG.float(), "fork": ones_BG.bool(),
            "noise_seed": torch.arange(rows),
            "prompt_seed": torch.arange(rows) // GROUP, "advantages": advantage_B, "weight": advantage_B,
            "active": active_B, "num_items_in_batch": ones_BG.sum(),
        }  # fmt: skip
        return {name: column.to(self.denoiser.device) for name, column in columns.items()}

    def prompts(self):
        """The prompts as the library masks them, for each inner iteration."""
        c = self.columns
        seed_B = c["prompt_seed" if self.args.share_prompt_mask else "noise_seed"]
        real_BP, ratio, mask_id = c["prompt_mask"].bool(), self.args.prompt_mask_ratio, self.denoiser.mask_id
        return [Draw(seed_B, t, 0).prompt(c["prompt_ids"], real_BP, ratio, mask_id) for t in range(self.iterations)]

    def plain(self):
        """The plain form's updates: losses."""
        c, args = self.columns, self.args
        return plain_generation(
            self.policy,
            self.trainer.ref_model,
            self.prompts(),
            c["completion_ids"],
            c["tool_mask"],
            c["advantages"],
            self.optimizer,
            mask_id=self.denoiser.mask_id,
            forbidden=self.denoiser.never_drawn,
            beta=args.beta,
            epsilon=args.epsilon,
            max_grad_norm=args.max_grad_norm,
        )

    def ours(self):
        """The trainer's updates: losses."""
        trainer, columns, losses = self.trainer, dict(self.columns), []
        trainer._score_before(columns)
        for trainer._step in range(self.iterations):
            loss = trainer.compute_loss(self.policy, columns)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.args.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    @torch.no_grad()
    def plain_old(self):
        """One inner iteration's likelihoods of the policy that sampled."""
        return token_logps(
            self.policy,
            self.prompts()[0],
            self.columns["completion_ids"],
            self.denoiser.mask_id,
            self.denoiser.never_drawn,
        )

    @torch.no_grad()
    def ours_old(self):
        """The same of the trainer."""
        rows_A = self.columns["active"].nonzero()[:, 0]
        return self.trainer._score_rows(self.policy, self.columns, rows_A, 1, [0])[:, 0]


def nudge(policy):
    """Moves what is trained a little, so that the policy is no longer its reference."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += NUDGE * torch.randn(parameter.shape, generator=generator).to(parameter)


def trained(policy):
    """All that is trained, in one vector."""
    return torch.cat([p.detach().ravel() for p in policy.parameters() if p.requires_grad]).clone()
