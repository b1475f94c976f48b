"""An adapter under a family's published names, and back: what an adapter of transformers' class is to the authors' own code.

Where the published checkpoint has one matrix for several native ones (LLaDA2's `query_key_value`), the native adapters lie
beside one another: `[dW_q; dW_k] = blockdiag(B_q, B_k) [A_q; A_k]`, of as many times the rank, and exactly the same product.
Leaves out adapters of stacked experts, which published checkpoints keep one by one, and DoRA on fused matrices.

Axes: R ranks, D inputs, O outputs of a linear map.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from lockstitch.sampling.families import Translation
from lockstitch.sampling.loading import transforms
from lockstitch.sampling.lora_targets import stacked_experts, targets_of

Weights = dict[str, torch.Tensor]
_PREFIX = "base_model.model."
_KEY = re.compile(rf"{re.escape(_PREFIX)}(?P<module>.+)\.(?P<part>lora_A|lora_B)\.weight")


def in_published_names(weights: Mapping[str, torch.Tensor], translation: Translation) -> bool:
    """Whether an adapter's keys are those of the family's own code rather than transformers'."""
    names = {_module(key) for key in weights}
    fused = tuple(one for one, _ in translation.fused)
    return any(name.endswith(fused) or _renamed(name, translation, back=False) != name for name in names)


def published_adapter(
    weights: Mapping[str, torch.Tensor], config: Mapping[str, Any], translation: Translation, model: torch.nn.Module
) -> tuple[Weights, dict[str, Any]]:
    """Weights and config of an adapter under the family's published names.

    Args:
        weights: of the native adapter, by PEFT's keys.
        config: its adapter_config.json.
        translation: the family's.
        model: the native base, for the sizes of what a fused matrix holds beside adapted parts.

    Raises `ValueError` for what has no published form.
    """
    if any(not name.endswith(".weight") for name in config.get("target_parameters") or ()):
        raise ValueError(
            "names=published: stacked experts are single ones in published checkpoints, and their adapter has no names "
            "there; names=native"
        )
    pairs, others = _pairs(weights)
    renamed: Weights = {}
    ranks, alphas = dict(config.get("rank_pattern") or {}), dict(config.get("alpha_pattern") or {})
    for one, several in translation.fused:
        for stem in sorted({name.removesuffix(part) for name in pairs for part in several if name.endswith(part)}):
            if config.get("use_dora"):
                raise ValueError(
                    f"names=published: {one} is one matrix there, whose norms DoRA would share; names=native"
                )
            parts = [(stem + part, pairs.pop(stem + part, None)) for part in several]
            a, b = _side_by_side([(_outputs(model, name), pair) for name, pair in parts])
            renamed |= _keyed(_renamed(stem + one, translation), a, b)
            ranks[one], alphas[one] = a.shape[0], _alpha(config, a.shape[0])
    for name, (a, b) in pairs.items():
        renamed |= _keyed(_renamed(name, translation), a, b)
    for key, weight in others.items():
        renamed[_PREFIX + _renamed(key.removeprefix(_PREFIX), translation)] = weight
    modules = [_module(key) for key in renamed if _KEY.fullmatch(key)]
    return renamed, {
        **config,
        **targets_of(modules),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "task_type": None,
        "modules_to_save": _saved(config, translation),
    }


def native_adapter(
    weights: Mapping[str, torch.Tensor], config: Mapping[str, Any], translation: Translation, model: torch.nn.Module
) -> tuple[Weights, dict[str, Any]]:
    """The inverse of `published_adapter`: parts of a fused matrix share its A and have their rows of its B."""
    pairs, others = _pairs(weights)
    renamed: Weights = {}
    ranks, alphas = dict(config.get("rank_pattern") or {}), dict(config.get("alpha_pattern") or {})
    for one, several in translation.fused:
        for name in [name for name in pairs if name.endswith(one)]:
            a, b = pairs.pop(name)
            stem = _renamed(name, translation, back=False).removesuffix(one)
            sizes = [_outputs(model, stem + part) for part in several]
            for part, rows in zip(several, torch.split(b, sizes), strict=True):
                renamed |= _keyed(stem + part, a.clone(), rows.contiguous())
                ranks[part], alphas[part] = a.shape[0], alphas.get(one, config["lora_alpha"])
        ranks.pop(one, None)
        alphas.pop(one, None)
    for name, (a, b) in pairs.items():
        renamed |= _keyed(_renamed(name, translation, back=False), a, b)
    for key, weight in others.items():
        renamed[_PREFIX + _renamed(key.removeprefix(_PREFIX), translation, back=False)] = weight
    modules = [_module(key) for key in renamed if _KEY.fullmatch(key)]
    return renamed, {
        **config,
        **targets_of(modules, has_experts=bool(stacked_experts(model))),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "task_type": "CAUSAL_LM",
        "modules_to_save": _saved(config, translation, back=False),
    }


def _module(key: str) -> str:
    found = _KEY.fullmatch(key)
    return found["module"] if found else key.removeprefix(_PREFIX).removesuffix(".weight")


def _pairs(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], Weights]:
    """A and B of each adapted module, and what else an adapter holds."""
    modules = {found["module"] for key in weights if (found := _KEY.fullmatch(key))}
    both = {name: tuple(weights[f"{_PREFIX}{name}.lora_{part}.weight"] for part in "AB") for name in sorted(modules)}
    rest = {key: weight for key, weight in weights.items() if not _KEY.fullmatch(key)}
    return {name: (a, b) for name, (a, b) in both.items()}, rest


def _outputs(model: torch.nn.Module, name: str) -> int:
    """Outputs of the linear map of that name."""
    weight = model.get_submodule(name).weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0]


def _keyed(name: str, a: torch.Tensor, b: torch.Tensor) -> Weights:
    return {f"{_PREFIX}{name}.lora_A.weight": a, f"{_PREFIX}{name}.lora_B.weight": b}


def _renamed(name: str, translation: Translation, back: bool = True) -> str:
    from transformers.core_model_loading import WeightRenaming, apply_renamings

    steps = [step for step in transforms(translation) if isinstance(step, WeightRenaming)]
    if back:
        steps = [step.reverse_transform() for step in reversed(steps)]
    renamed: str = apply_renamings(f"{name}.weight", steps)
    return renamed.removesuffix(".weight")


def _side_by_side(
    parts: list[tuple[int, tuple[torch.Tensor, torch.Tensor] | None]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(A, B)` of one matrix over several, each with its number of outputs; nothing is added to parts without a pair."""
    there = [pair for _, pair in parts if pair is not None]
    rank = sum(len(a) for a, _ in there)
    rows, at = [], 0
    for outputs, pair in parts:
        row_OR = there[0][1].new_zeros(outputs, rank)
        if pair is not None:
            row_OR[:, at : at + len(pair[0])] = pair[1]
            at += len(pair[0])
        rows.append(row_OR)
    return torch.cat([a for a, _ in there]), torch.cat(rows)


def _alpha(config: Mapping[str, Any], rank: int) -> float:
    """What scales `rank` ranks as `lora_alpha` scales `r` of them."""
    times = rank / config["r"]
    alpha: float = config["lora_alpha"] * (math.sqrt(times) if config.get("use_rslora") else times)
    return alpha


def _saved(config: Mapping[str, Any], translation: Translation, back: bool = True) -> list[str] | None:
    saved = config.get("modules_to_save")
    return [_renamed(name, translation, back) for name in saved] if saved else saved
