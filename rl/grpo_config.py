"""Settings of `DiffusionGRPOTrainer`: TRL's own, how likelihoods are estimated, the losses that TRL lacks, and the sampler.

Flat, as TRL's parser wants them. What TRL offers for autoregressive models alone is refused, and so is whatever the other
choices would ignore.
"""

from dataclasses import dataclass, field
from typing import Any

from lockstitch.rl.estimator_config import EstimatorConfig
from lockstitch.rl.grpo_checks import (
    NORM,
    check_entropy,
    check_loss,
    check_numbers,
    check_positions,
    check_support,
    refuse_autoregressive,
)
from lockstitch.rl.rollout_engine_config import RolloutEngineConfig
from lockstitch.rl.self_distillation import SelfDistillationOptions
from lockstitch.rl.sft_config import check_counts, check_device, check_length, check_rates, precision_of
from lockstitch.sampling.compiled import check_asked, check_compiled
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.presets import PRESETS, preset
from trl import GRPOConfig

_SAMPLER = ("block_length", "steps", "policy", "threshold", "fallback", "factor", "entropy_bound", "window",
            "window_limit", "certainty", "cache", "cfg_scale")  # fmt: skip
_ESTIMATOR = (
    "estimator",
    "num_samples",
    "mask_schedule",
    "mask_distribution",
    "perturb_ratio",
    "prompt_mask_ratio",
    "segments",
    "segments_drawn",
    "surprisal_temperature",
    "clean_threshold",
    "position_temperature",
    "eubo_beta",
    "eubo_mix",
    "scope",
)


@dataclass
class DiffusionGRPOConfig(RolloutEngineConfig, SelfDistillationOptions, GRPOConfig):
    """TRL's `GRPOConfig` plus estimator, policy loss and sampler; `max_completion_length` is the length of the canvas."""

    gradient_checkpointing: bool = field(
        default=False,
        metadata={"help": "Off by default: recompute_passes saves as much where an estimate takes several passes."},
    )
    disable_dropout: bool = field(
        default=True,
        metadata={
            "help": "With dropout the same policy has other likelihoods each time, and the ratio to itself is not 1."
        },
    )

    estimator: str = field(
        default="trajectory",
        metadata={
            "help": "How a completion's log-likelihood is estimated: mean_field, coupled, elbo, sandwiched, "
            "trajectory, forks or autoregressive."
        },
    )
    num_samples: int | None = field(
        default=None, metadata={"help": "Masks drawn for an estimate (coupled, elbo, sandwiched)."}
    )
    mask_schedule: str | None = field(
        default=None,
        metadata={"help": "How mask ratios are drawn: random, stratified, complement or quadrature (elbo)."},
    )
    mask_distribution: str | None = field(
        default=None, metadata={"help": "How masks are drawn given a ratio: iid, count or block_random."}
    )
    prompt_mask_ratio: float | None = field(
        default=None, metadata={"help": "Share of prompt tokens that are masked, anew in each inner iteration (d1)."}
    )
    share_prompt_mask: bool = field(
        default=False,
        metadata={
            "help": "Mask the same tokens of the prompt for all of its completions, as if it were one prompt. Under "
            "mean_field a group is then scored in one row of a pass. Off, each completion's prompt is masked "
            "anew, as d1's code does."
        },
    )
    perturb_ratio: float | None = field(
        default=None, metadata={"help": "Share of the tokens before its block that block_random hides too (SPG)."}
    )
    segments: int | None = field(
        default=None, metadata={"help": "Passes over the trace (trajectory); None is one for each denoising step."}
    )
    segments_drawn: int | None = field(
        default=None,
        metadata={
            "help": "How many of the segments are scored, drawn anew in each inner iteration (trajectory); each counts the "
            "number of segments over that, so that the mean is that of all. None is all."
        },
    )
    surprisal_temperature: float | None = field(
        default=None,
        metadata={
            "help": "Segments are drawn with probability softmax(mean surprisal of their tokens / this), each counting "
            "once (RLDF: 1). None is evenly."
        },
    )
    clean_threshold: float | None = field(
        default=None,
        metadata={
            "help": "A drawn segment also scores what was still masked, where its final token has at least this "
            "probability (RLDF: 0.6). None is not."
        },
    )
    position_temperature: float | None = field(
        default=None,
        metadata={
            "help": "Also learn which position commits next: softmax over the masked ones of log-probability / this "
            "(trajectory, policy_loss=token; Mask-Aware PG: 0.5). None is not."
        },
    )
    eubo_beta: float | None = field(default=None, metadata={"help": "Order of the evidence upper bound (sandwiched)."})
    eubo_mix: float | None = field(
        default=None,
        metadata={"help": "Share of the upper bound in the mixture for negative advantages (sandwiched)."},
    )
    scope: str = field(
        default="valid",
        metadata={
            "help": "Whose tokens count: valid, those up to EOS, or the whole canvas, which rollouts then denoise to "
            "its end (ESPO)."
        },
    )
    score_temperature: float | None = field(
        default=None,
        metadata={
            "help": "Logits are divided by it when likelihoods are scored. None is the rollouts' `temperature` for "
            "estimators that score tokens given what they were drawn given (trajectory without segments, forks, "
            "autoregressive), so that their ratio is the sampling policy's, and 1 for the others, as their papers have it."
        },
    )

    recompute_passes: bool = field(
        default=True,
        metadata={
            "help": "Estimates of several passes keep no activations and run the passes again in the backward pass: "
            "memory does not grow with their number. Off is faster where there is memory."
        },
    )

    policy_loss: str = field(
        default="token",
        metadata={
            "help": "token: TRL's own (see loss_type, importance_sampling_level); sequence: one ratio per "
            "completion; sandwich: advantage times likelihood; weighted: group softmax of advantages times "
            "likelihood; self_normalized: the same with clipped ratios that add up to one; regression: the log-ratio is "
            "taken to psi times the advantage (GDSD); self_distillation: at each step of right completions the model "
            "without its adapter, which sees later blocks, teaches (d-OPSD)."
        },
    )
    ratio_norm: str | None = field(
        default=None,
        metadata={
            "help": "What a completion's log-likelihood is divided by: canvas, valid (tokens up to EOS) or none. By "
            "default canvas for sequence and regression, none for weighted, valid for self_normalized."
        },
    )
    kl_form: str | None = field(
        default=None, metadata={"help": "k2 or k3, for policy_loss sequence or regression with a beta; None is k2."}
    )
    ratio_clip: float | None = field(
        default=None, metadata={"help": "Most that a ratio weighs under self_normalized; None is 5."}
    )

    position_epsilon: float | None = field(
        default=None, metadata={"help": "The clip of the ratios of positions (position_temperature); None is epsilon."}
    )
    psi: float | None = field(
        default=None,
        metadata={"help": "What regression multiplies advantages by, in log-ratio per position; None is 1."},
    )

    preset: str | None = field(
        default=None,
        metadata={
            "help": "A named set of sampler settings, which the fields below go before; temperature, top_p and "
            "top_k are always TRL's fields."
        },
    )
    block_length: int | None = field(
        default=None, metadata={"help": "Positions denoised together; None is the model's own block, else the canvas."}
    )
    steps: int | None = field(
        default=None, metadata={"help": "Denoising steps of the whole canvas; None is one token a step."}
    )
    policy: str | None = field(
        default=None, metadata={"help": "Which masked positions commit at a step; None is quota."}
    )
    threshold: float | None = field(default=None, metadata={"help": "Certainty that commits (threshold, deferred)."})
    fallback: str | None = field(
        default=None,
        metadata={"help": "What commits where nothing reaches the threshold: certain or leftmost; None is certain."},
    )
    factor: float | None = field(default=None, metadata={"help": "How generous policy=factor is."})
    entropy_bound: float | None = field(default=None, metadata={"help": "Nats that policy=entropy_bound may commit."})
    window: int | None = field(default=None, metadata={"help": "Masks in the window of policy=deferred."})
    window_limit: int | None = field(default=None, metadata={"help": "Positions that window may span."})
    certainty: str | None = field(
        default=None, metadata={"help": "What a policy ranks by: probability, margin, entropy."}
    )
    cache: str | None = field(default=None, metadata={"help": "Keys kept between denoising steps; None is none."})
    cfg_scale: float | None = field(
        default=None, metadata={"help": "Classifier-free guidance in rollouts; None is 0."}
    )
    rollout_micro_batch_size: int = field(
        default=64, metadata={"help": "Most completions denoised at a time. Changes speed and memory, never results."}
    )

    drop_zero_variance: bool = field(
        default=True,
        metadata={
            "help": "Groups whose rewards are all the same are not scored: their advantages are 0. Their pull to the "
            "reference (beta) goes with them."
        },
    )
    refill_groups: int = field(
        default=0,
        metadata={
            "help": "Rounds in which such groups are replaced by groups of fresh prompts (DAPO's dynamic sampling)."
        },
    )

    def __post_init__(self) -> None:
        refuse_autoregressive(self)
        check_counts(self, "steps_per_generation", "generation_batch_size", "num_iterations", "num_generations")
        check_rates(self)
        check_length(self)
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would take away the columns that rewards read")
        self.bf16 = precision_of(self)
        super().__post_init__()
        check_device(self)
        check_loss(self)
        check_numbers(self)
        check_positions(self)
        self.check_rollout_engine()
        self.check_distillation(self)
        if self.pad_to_multiple_of is not None:
            raise ValueError(
                f"pad_to_multiple_of={self.pad_to_multiple_of}: a canvas has max_completion_length positions"
            )
        if self.refill_groups < 0:
            raise ValueError(f"refill_groups={self.refill_groups} rounds: 0 or more")
        alone = self.scale_rewards != "batch" and self.multi_objective_aggregation == "sum_then_normalize"
        if self.refill_groups and not alone:
            raise ValueError(
                "refill_groups needs advantages that depend on their own group: scale_rewards='group' or "
                "'none', multi_objective_aggregation='sum_then_normalize'"
            )
        if self.score_temperature is not None and not self.score_temperature > 0:
            raise ValueError(f"score_temperature={self.score_temperature} must be positive")
        exact = self.estimator_config().exact  # refuses what does not fit
        check_entropy(self, exact)
        if self.share_prompt_mask and not self.prompt_mask_ratio:
            raise ValueError(f"share_prompt_mask=True would be ignored: prompt_mask_ratio={self.prompt_mask_ratio}")
        sampler = self.sampler_config()
        if self.torch_compile:
            check_asked(self.torch_compile_backend, self.torch_compile_mode, self.device)
            check_compiled(sampler)
        if sampler.temperature == 0 and sampler.policy != "random":
            raise ValueError("temperature=0: all completions of a group would be the same")
        if self.estimator == "forks" and sampler.threshold is None:
            raise ValueError(
                f"estimator='forks' with policy={sampler.policy!r}: forks are what a threshold left; policy='threshold' "
                "with fallback='leftmost', or preset='fork'"
            )
        if exact:
            check_support(self, sampler)

    @property
    def scoring_temperature(self) -> float:
        """What logits are divided by when likelihoods are scored."""
        if self.score_temperature is not None:
            return self.score_temperature
        return self.temperature if self.estimator_config().exact and self.temperature > 0 else 1.0

    @property
    def norm(self) -> str:
        """What a completion's log-likelihood is divided by."""
        return self.ratio_norm or NORM.get(self.policy_loss, "none")

    def estimator_config(self) -> EstimatorConfig:
        """The estimator's settings; raises `ValueError` for what it would ignore."""
        settings = {name: getattr(self, name) for name in _ESTIMATOR}
        if self.mask_distribution == "block_random":
            settings["block_length"] = self.sampler_config().block_length or self.max_completion_length
        return EstimatorConfig(**{name: value for name, value in settings.items() if value is not None})

    def sampler_config(self) -> SamplerConfig:
        """The sampler's settings; raises `ValueError` for those that fit neither each other nor the training."""
        try:
            return self._sampler_config()
        except ValueError as error:  # the canvas has TRL's name here
            raise ValueError(str(error).replace("canvas_length", "max_completion_length")) from None

    def _sampler_config(self) -> SamplerConfig:
        settings: dict[str, Any] = {name: getattr(self, name) for name in _SAMPLER}
        settings = {name: value for name, value in settings.items() if value is not None}
        settings |= {
            "temperature": self.temperature,
            "top_k": self.top_k or None,
            "top_p": None if self.top_p == 1 else self.top_p,
            "batch_size": self.rollout_micro_batch_size,
            "stop_at_eos": self.scope == "valid",
        }
        if self.rollout_engine != "transformers":
            settings["whole_blocks"] = True
        if "verify" in (self.policy, PRESETS.get(self.preset or "", {}).get("policy")):
            raise ValueError(
                f"preset={self.preset!r}, policy={self.policy!r}: verify draws the text of the causal half, which "
                "likelihoods of masks do not score"
            )
        if self.preset is None:
            return SamplerConfig(canvas_length=self.max_completion_length, **settings)
        # Completions are scored as they are, in canvases of one length: the last block ends with them.
        config = preset(self.preset, self.max_completion_length, **{"whole_blocks": False, **settings})
        if config.correction != "none" or config.length != "fixed":
            kept = ", ".join(name for name, values in PRESETS.items() if not {"correction", "length"} & values.keys())
            raise ValueError(
                f"preset={self.preset!r} takes tokens back or moves the canvas, and likelihoods need each "
                f"position committed once: {kept} do that"
            )
        return config
