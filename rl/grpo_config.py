"""Settings of `DiffusionGRPOTrainer`: TRL's own, how likelihoods are estimated, the losses that TRL lacks, and the sampler.

Flat, as TRL's parser wants them. What TRL offers for autoregressive models alone is refused, and so is whatever the other
choices would ignore.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from lockstitch.rl.estimator_config import EstimatorConfig
from lockstitch.rl.rollout_engine_config import RolloutEngineConfig
from lockstitch.rl.sft_config import check_counts, precision_of
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.presets import PRESETS, preset
from trl import GRPOConfig

POLICY_LOSSES = ("token", "sequence", "sandwich", "weighted", "self_normalized")
RATIO_NORMS = ("canvas", "valid", "none")
KL_FORMS = ("k2", "k3")
_NORM = {"sequence": "canvas", "weighted": "none", "self_normalized": "valid"}

_SAMPLER = ("block_length", "steps", "policy", "threshold", "fallback", "factor", "entropy_bound", "window",
            "window_limit", "certainty", "cache", "cfg_scale")  # fmt: skip
_ESTIMATOR = ("estimator", "num_samples", "mask_schedule", "mask_distribution", "perturb_ratio", "prompt_mask_ratio",
              "segments", "eubo_beta", "eubo_mix", "scope")  # fmt: skip

# What TRL looks at in the first step only.
_CHOICES = {
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}

_AUTOREGRESSIVE = "canvases are denoised by lockstitch.sampling"
# Options of TRL with one value that has a meaning here, and why.
_REFUSED: dict[str, str] = {
    "use_vllm": f"vLLM generates token by token; {_AUTOREGRESSIVE}",
    "use_transformers_continuous_batching": _AUTOREGRESSIVE,
    "transformers_continuous_batching_config": _AUTOREGRESSIVE,
    "use_transformers_paged": _AUTOREGRESSIVE,
    "cache_implementation": f"{_AUTOREGRESSIVE}: say cache=",
    "generation_kwargs": f"{_AUTOREGRESSIVE}, whose options have fields of their own",
    "min_p": f"{_AUTOREGRESSIVE}, which knows temperature, top_p and top_k",
    "repetition_penalty": f"{_AUTOREGRESSIVE}, which knows temperature, top_p and top_k",
    "max_tool_calling_iterations": "a canvas holds one turn: there are no tools",
    "sync_ref_model": "the reference is the model that training began with",
    "router_aux_loss_coef": "likelihoods are scored without router logits",
}
_TOKEN_ONLY = (
    "loss_type",
    "importance_sampling_level",
    "top_entropy_quantile",
    "off_policy_mask_threshold",
    "use_bias_correction_kl",
    "entropy_coef",
    "use_adaptive_entropy",
)
_ADAPTIVE_ENTROPY = ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target")
_CLIPPED_ONLY = ("epsilon", "epsilon_high", "delta")


@dataclass
class DiffusionGRPOConfig(RolloutEngineConfig, GRPOConfig):
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
            "likelihood; self_normalized: the same with clipped ratios that add up to one."
        },
    )
    ratio_norm: str | None = field(
        default=None,
        metadata={
            "help": "What a completion's log-likelihood is divided by: canvas, valid (tokens up to EOS) or none. By "
            "default canvas for sequence, none for weighted, valid for self_normalized."
        },
    )
    kl_form: str | None = field(
        default=None, metadata={"help": "k2 or k3, for policy_loss=sequence with a beta; None is k2."}
    )
    ratio_clip: float | None = field(
        default=None, metadata={"help": "Most that a ratio weighs under self_normalized; None is 5."}
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
        self._refuse_autoregressive()
        check_counts(self, "steps_per_generation", "generation_batch_size", "num_iterations", "num_generations")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would take away the columns that rewards read")
        self.bf16 = precision_of(self)
        super().__post_init__()
        self._check_loss()
        self.check_rollout_engine()
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
        self._check_entropy(exact)
        if self.share_prompt_mask and not self.prompt_mask_ratio:
            raise ValueError(f"share_prompt_mask=True would be ignored: prompt_mask_ratio={self.prompt_mask_ratio}")
        sampler = self.sampler_config()
        if sampler.temperature == 0 and sampler.policy != "random":
            raise ValueError("temperature=0: all completions of a group would be the same")
        if self.estimator == "forks" and sampler.threshold is None:
            raise ValueError(
                f"estimator='forks' with policy={sampler.policy!r}: forks are what a threshold left; policy='threshold' "
                "with fallback='leftmost', or preset='fork'"
            )
        if exact:
            self._check_support(sampler)

    def _refuse_autoregressive(self) -> None:
        for option in dataclasses.fields(self):
            why = _REFUSED.get(option.name)
            if why is None and option.name.startswith("vllm_"):
                why = _REFUSED["use_vllm"]
            if why is not None and getattr(self, option.name) != option.default:
                raise ValueError(
                    f"{option.name}={getattr(self, option.name)!r} has no meaning for a diffusion model: {why}"
                )

    def _check_loss(self) -> None:
        if self.policy_loss not in POLICY_LOSSES:
            raise ValueError(f"policy_loss={self.policy_loss!r} is not one of {', '.join(POLICY_LOSSES)}")
        for name, choices in (("ratio_norm", RATIO_NORMS), ("kl_form", KL_FORMS)):
            if getattr(self, name) not in (None, *choices):
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(choices)}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(known)}")
        defaults = {option.name: option.default for option in dataclasses.fields(self)}
        homes = {
            **dict.fromkeys(_TOKEN_ONLY, ("token",)),
            **dict.fromkeys(_CLIPPED_ONLY, ("token", "sequence")),
            "beta": ("token", "sequence"),
            "ratio_norm": tuple(_NORM),
            "kl_form": ("sequence",),
            "ratio_clip": ("self_normalized",),
        }
        for name, losses in homes.items():
            value = getattr(self, name)
            if self.policy_loss not in losses and value != defaults[name]:
                raise ValueError(
                    f"{name}={value!r} would be ignored by policy_loss={self.policy_loss!r}; it is for "
                    f"{', '.join(losses)}"
                )
        if self.kl_form is not None and self.beta == 0:
            raise ValueError(f"kl_form={self.kl_form!r} would be ignored: beta=0")
        if self.ratio_clip is not None and self.ratio_clip < 1:
            raise ValueError(f"ratio_clip={self.ratio_clip}: at least 1, the ratio of an unchanged policy")
        if self.estimator == "sandwiched" and self.policy_loss in ("token", "sequence"):
            raise ValueError(
                f"estimator='sandwiched' does not go with policy_loss={self.policy_loss!r}: the ratio of two "
                "upper bounds estimates no ratio; sandwich, weighted and self_normalized take it"
            )

    def _check_entropy(self, exact: bool) -> None:
        """A bonus of entropy needs the distributions that tokens were drawn from."""
        if (self.entropy_coef or self.use_adaptive_entropy) and not exact:
            name = "entropy_coef" if self.entropy_coef else "use_adaptive_entropy"
            raise ValueError(
                f"{name}={getattr(self, name)}: estimator={self.estimator!r}, segments={self.segments} does not see the "
                "distributions that the rollout drew from; trajectory without segments, forks and autoregressive do"
            )
        for name in _ADAPTIVE_ENTROPY:
            if not self.use_adaptive_entropy and getattr(self, name) != _default(self, name):
                raise ValueError(f"{name}={getattr(self, name)} would be ignored: use_adaptive_entropy=False")

    def _check_support(self, sampler: SamplerConfig) -> None:
        """A ratio that is to be the sampling policy's needs its support."""
        cut = {"top_p": sampler.top_p, "top_k": sampler.top_k, "cfg_scale": sampler.cfg_scale or None}
        for name, value in cut.items():
            if value is not None:
                raise ValueError(
                    f"{name}={value}: estimator={self.estimator!r} scores the policy that drew the rollouts, and that "
                    f"drew from another distribution than the model's; {name}={_default(self, name)}, or an estimator "
                    "that is no such ratio (mean_field, coupled, elbo, sandwiched, trajectory with segments)"
                )

    @property
    def scoring_temperature(self) -> float:
        """What logits are divided by when likelihoods are scored."""
        if self.score_temperature is not None:
            return self.score_temperature
        return self.temperature if self.estimator_config().exact and self.temperature > 0 else 1.0

    @property
    def norm(self) -> str:
        """What a completion's log-likelihood is divided by."""
        return self.ratio_norm or _NORM.get(self.policy_loss, "none")

    def estimator_config(self) -> EstimatorConfig:
        """The estimator's settings; raises `ValueError` for what it would ignore."""
        settings = {name: getattr(self, name) for name in _ESTIMATOR}
        if self.mask_distribution == "block_random":
            settings["block_length"] = self.block_length or self.max_completion_length
        return EstimatorConfig(**{name: value for name, value in settings.items() if value is not None})

    def sampler_config(self) -> SamplerConfig:
        """The sampler's settings; raises `ValueError` for those that fit neither each other nor the training."""
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


def _default(config: Any, name: str) -> Any:
    return next(option.default for option in dataclasses.fields(config) if option.name == name)
