"""What `DiffusionGRPOConfig` refuses: choices that there are not, options that the others would ignore, and what TRL offers
for autoregressive models alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lockstitch.rl.sft_config import check_rates
from lockstitch.sampling.config import SamplerConfig

POLICY_LOSSES = ("token", "sequence", "sandwich", "weighted", "self_normalized", "regression", "self_distillation")
RATIO_NORMS = ("canvas", "valid", "none")
KL_FORMS = ("k2", "k3")
NORM = {"sequence": "canvas", "weighted": "none", "self_normalized": "valid", "regression": "canvas"}
POSITION_LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")

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
    "ref_model_mixup_alpha": "the reference is the model that training began with",
    "ref_model_sync_steps": "the reference is the model that training began with",
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
_OF_LOSS_TYPE = {
    "sapo": ("sapo_temperature_neg", "sapo_temperature_pos"),
    "vespo": ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
}
_CLIP = ("epsilon", "epsilon_high", "delta")
_UNREAD = {"sapo": _CLIP, "vespo": _CLIP, "cispo": ("delta",)}  # of `_CLIP`, by loss type
_ADAPTIVE_ENTROPY = ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target")
_CLIPPED = ("token", "sequence", "regression")


def refuse_autoregressive(config: Any) -> None:
    """Raises `ValueError` for what TRL offers for autoregressive models alone."""
    for option in dataclasses.fields(config):
        why = _REFUSED.get(option.name)
        if why is None and option.name.startswith("vllm_"):
            why = _REFUSED["use_vllm"]
        if why is not None and getattr(config, option.name) != option.default:
            raise ValueError(
                f"{option.name}={getattr(config, option.name)!r} has no meaning for a diffusion model: {why}"
            )


def check_loss(config: Any) -> None:
    """Raises `ValueError` for a loss that there is not, and for options that it would ignore."""
    if config.policy_loss not in POLICY_LOSSES:
        raise ValueError(f"policy_loss={config.policy_loss!r} is not one of {', '.join(POLICY_LOSSES)}")
    for name, choices in (("ratio_norm", RATIO_NORMS), ("kl_form", KL_FORMS)):
        if getattr(config, name) not in (None, *choices):
            raise ValueError(f"{name}={getattr(config, name)!r} is not one of {', '.join(choices)}")
    for name, known in _CHOICES.items():
        if getattr(config, name) not in known:
            raise ValueError(f"{name}={getattr(config, name)!r} is not one of {', '.join(known)}")
    defaults = {option.name: option.default for option in dataclasses.fields(config)}
    homes = {
        **dict.fromkeys(_TOKEN_ONLY, ("token",)),
        **dict.fromkeys(("epsilon", "epsilon_high", "beta"), _CLIPPED),
        "delta": ("token", "sequence"),
        "ratio_norm": tuple(NORM),
        "kl_form": ("sequence", "regression"),
        "ratio_clip": ("self_normalized",),
        "psi": ("regression",),
        "position_temperature": ("token",),
    }
    for name, losses in homes.items():
        value = getattr(config, name)
        if config.policy_loss not in losses and value != defaults[name]:
            raise ValueError(
                f"{name}={value!r} would be ignored by policy_loss={config.policy_loss!r}; it is for "
                f"{', '.join(losses)}"
            )
    for loss_type, names in _OF_LOSS_TYPE.items():
        for name in names:
            if config.loss_type != loss_type and getattr(config, name) != defaults[name]:
                raise ValueError(
                    f"{name}={getattr(config, name)} would be ignored by loss_type={config.loss_type!r}; it is for "
                    f"{loss_type}"
                )
    _check_clip(config, defaults)
    if config.kl_form is not None and config.beta == 0:
        raise ValueError(f"kl_form={config.kl_form!r} would be ignored: beta=0")
    if config.ratio_clip is not None and config.ratio_clip < 1:
        raise ValueError(f"ratio_clip={config.ratio_clip}: at least 1, the ratio of an unchanged policy")
    if config.estimator == "sandwiched" and config.policy_loss in _CLIPPED:
        raise ValueError(
            f"estimator='sandwiched' does not go with policy_loss={config.policy_loss!r}: the ratio of two "
            "upper bounds estimates no ratio; sandwich, weighted and self_normalized take it"
        )


def _check_clip(config: Any, defaults: Mapping[str, Any]) -> None:
    """Raises `ValueError` for bounds of ratios that the type of a token's loss does not read."""
    if config.policy_loss != "token":
        return
    of_positions = config.position_temperature is not None and config.position_epsilon is None
    for name in _UNREAD.get(config.loss_type, ()):
        if getattr(config, name) != defaults[name] and not (of_positions and name != "delta"):
            raise ValueError(f"{name}={getattr(config, name)} would be ignored by loss_type={config.loss_type!r}")
    if (
        config.loss_type == "cispo"
        and config.epsilon_high is not None
        and config.epsilon != defaults["epsilon"]
        and not of_positions
    ):
        raise ValueError(
            f"epsilon={config.epsilon} would be ignored by loss_type='cispo' with epsilon_high={config.epsilon_high}"
        )


def check_numbers(config: Any) -> None:
    """Raises `ValueError` for numbers of the loss and the optimiser that are out of their range."""
    check_rates(config)
    # Under cispo it is the greatest ratio itself, where epsilon_high is not said.
    if not config.epsilon >= 0 or (config.epsilon >= 1 and config.loss_type != "cispo"):
        raise ValueError(f"epsilon={config.epsilon} must be at least 0 and below 1: ratios are clipped at 1 - epsilon")
    if config.epsilon_high is not None and not config.epsilon_high > 0:
        raise ValueError(f"epsilon_high={config.epsilon_high} must be positive")
    if not config.beta >= 0:
        raise ValueError(f"beta={config.beta} must be at least 0")
    if config.delta is not None and not config.delta > 1 + config.epsilon:
        raise ValueError(
            f"delta={config.delta} must be above 1 + epsilon={1 + config.epsilon:g}, the clip that it is beyond"
        )
    if config.reward_weights is not None and not config.reward_weights:
        raise ValueError("reward_weights=[] must hold a number for each reward")


def check_positions(config: Any) -> None:
    """Raises `ValueError` for options of the position's ratio that would be ignored, and losses that it does not go with."""
    if config.psi is not None and not config.psi > 0:
        raise ValueError(f"psi={config.psi} must be positive")
    if config.position_temperature is None:
        if config.position_epsilon is not None:
            raise ValueError(f"position_epsilon={config.position_epsilon} would be ignored: position_temperature=None")
        return
    if config.position_epsilon is not None and not config.position_epsilon > 0:
        raise ValueError(f"position_epsilon={config.position_epsilon} must be positive")
    if config.loss_type not in POSITION_LOSS_TYPES or config.importance_sampling_level != "token":
        raise ValueError(
            f"position_temperature={config.position_temperature}: positions are clipped as tokens are under loss_type "
            f"{', '.join(POSITION_LOSS_TYPES)} and importance_sampling_level='token'; "
            f"loss_type={config.loss_type!r}, importance_sampling_level={config.importance_sampling_level!r}"
        )


def check_entropy(config: Any, exact: bool) -> None:
    """Raises `ValueError` for a bonus of entropy without the distributions that tokens were drawn from."""
    if (config.entropy_coef or config.use_adaptive_entropy) and not exact:
        name = "entropy_coef" if config.entropy_coef else "use_adaptive_entropy"
        raise ValueError(
            f"{name}={getattr(config, name)}: estimator={config.estimator!r}, segments={config.segments} does not see the "
            "distributions that the rollout drew from; trajectory with all of its steps, forks and autoregressive do"
        )
    for name in _ADAPTIVE_ENTROPY:
        if not config.use_adaptive_entropy and getattr(config, name) != _default(config, name):
            raise ValueError(f"{name}={getattr(config, name)} would be ignored: use_adaptive_entropy=False")


def check_support(config: Any, sampler: SamplerConfig) -> None:
    """Raises `ValueError` for rollouts of another support than that of scores that are to be theirs."""
    cut = {"top_p": sampler.top_p, "top_k": sampler.top_k, "cfg_scale": sampler.cfg_scale or None}
    for name, value in cut.items():
        if value is not None:
            raise ValueError(
                f"{name}={value}: estimator={config.estimator!r} scores the policy that drew the rollouts, and that "
                f"drew from another distribution than the model's; {name}={_default(config, name)}, or an estimator "
                "that is no such ratio (mean_field, coupled, elbo, sandwiched, trajectory with segments)"
            )


def _default(config: Any, name: str) -> Any:
    return next(option.default for option in dataclasses.fields(config) if option.name == name)
