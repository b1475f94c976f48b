"""LoRA for diffusion language models: which modules of a model get an adapter, and the settings of TRL's `ModelConfig`.

A target is the end of a path inside a transformer block, layer numbers left out, under the names of transformers' own
classes: `q_proj`, `self_attn.q_proj`, `shared_experts.up_proj`, or the stacked weights of the routed experts,
`experts.gate_up_proj` and `experts.down_proj`. Confined to the blocks, and each must match: a name that matches nothing is
otherwise passed over in silence. The published runs on LLaDA asked its own code for `o_proj`, `gate_proj` and `down_proj`,
which that calls `attn_out`, `ff_proj` and `ff_out`, and trained without them; transformers' class has all of them.

Dropout is 0 by default. With dropout the new and the old policy are scored under different masks of the adapter, so their
ratio is not 1 at the first inner iteration and updates are clipped that should not be.

Leaves out adapters other than LoRA.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstitch.sampling.lora_targets import block_modules, short_path, stacked_experts, target_pattern, targets_of
from trl import ModelConfig

from lockstitch import EMBEDDED, adapter_and_base

if TYPE_CHECKING:
    import torch
    from lockstitch.sampling.denoiser import Denoiser
    from peft import LoraConfig

ALL_LINEAR = "all-linear"
_USUAL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def default_targets(model: "torch.nn.Module") -> tuple[str, ...]:
    """The usual targets that a model has: every linear map of its blocks that sees every token.

    Routed experts number thousands and see few tokens each. They are stacked weights rather than linear maps, so they are
    for those who ask.
    """
    ends = {name.rpartition(".")[2] for name in block_modules(model)}
    return tuple(name for name in _USUAL if name in ends)


def check_sizes(r: int, alpha: int, dropout: float) -> None:
    """Raises `ValueError` for a rank, a scale or a dropout with which an adapter learns nothing, or the wrong way round."""
    if type(r) is not int or r < 1:
        raise ValueError(f"lora_r={r!r} must be a whole number of at least 1")
    if not alpha > 0:
        raise ValueError(f"lora_alpha={alpha!r} must be above 0: the adapter's output is scaled by it")
    if not 0 <= dropout < 1:
        raise ValueError(f"lora_dropout={dropout!r} must be at least 0 and below 1")


def check_saved(model: "torch.nn.Module", names: Sequence[str], targets: Sequence[str] = ()) -> None:
    """Raises `ValueError` for a module to be trained and saved whole that the model has not, or that is a target as well.

    A name is the end of a module's path.
    """
    from torch.nn import ModuleDict, ModuleList

    whole = {
        path: module
        for path, module in model.named_modules()
        if path and not isinstance(module, ModuleDict | ModuleList) and next(module.parameters(), None) is not None
    }
    for name in names:
        paths = [path for path in whole if f".{path}".endswith(f".{name}")]
        if not paths:
            own = {path.rpartition(".")[2] for path, one in whole.items() if list(one.parameters(recurse=False))}
            raise ValueError(
                f"lora_modules_to_save: no module's path ends in {name!r}; there are: {', '.join(sorted(own))}"
            )
        both = [target for target in targets if any(f"{target}.".startswith(f"{path}.") for path in paths)]
        if both:
            raise ValueError(
                f"lora_modules_to_save: {name!r} is trained whole, and so cannot have the adapter of {both[0]}: leave one "
                "of them out of lora_target_modules or lora_modules_to_save"
            )


def lora_config(
    of: "Denoiser | torch.nn.Module",
    r: int,
    alpha: int,
    dropout: float = 0.0,
    targets: Sequence[str] | str | None = None,
    gated: bool = False,
    **more: Any,
) -> "LoraConfig":
    """PEFT's configuration of an adapter for this model.

    Args:
        of: a denoiser, or one of transformers' models.
        r: rank.
        alpha: the adapter's output is scaled by `alpha / r`.
        dropout: of the adapter's input; 0 where ratios of policies are formed.
        targets: one or more targets, `all-linear` for every linear map of the blocks, or None for the usual ones.
        gated: whether the adapter acts at mask positions alone; `lockstitch.sampling.mask_gate.gated` then puts it on.
        more: further fields of `LoraConfig` (`use_rslora`, `use_dora`, `modules_to_save`, ...).

    Raises `ValueError` naming the targets and modules to save that match nothing, and those that there are.
    """
    from lockstitch.sampling.denoiser import Denoiser
    from lockstitch.sampling.mask_gate import MaskGatedLoraConfig, facts_of
    from peft import LoraConfig

    check_sizes(r, alpha, dropout)
    model: Any = of.model if isinstance(of, Denoiser) else of
    kind = of.family.name if isinstance(of, Denoiser) else model.config.model_type
    names, experts = block_modules(model), stacked_experts(model)
    linear = sorted({short_path(name) for name in names})
    if targets is None:
        wanted: Sequence[str] = default_targets(model)
    elif targets == ALL_LINEAR:
        wanted = linear
    else:
        wanted = [targets] if isinstance(targets, str) else list(targets)

    def matched(target: str, among: Sequence[str]) -> list[str]:
        if among is experts and "experts." not in target:
            return []  # `down_proj` is that of dense layers and of the shared expert
        return [name for name in among if re.fullmatch(target_pattern([target]), name)]

    missing = [target for target in wanted if not (matched(target, names) or matched(target, experts))]
    if missing or not wanted:
        there = [*linear, *sorted({short_path(name) for name in experts})]
        raise ValueError(
            f"lora_target_modules: {', '.join(missing) or 'an empty list'} matches nothing inside the blocks of this "
            f"{kind} model; there are: {', '.join(there) or 'none'}"
        )
    maps, stacked = ([name for target in wanted for name in matched(target, among)] for among in (names, experts))
    check_saved(model, more.get("modules_to_save") or (), [*maps, *stacked])
    settings = targets_of(maps, stacked, has_experts=bool(experts))
    if dropout and settings["target_parameters"]:
        raise ValueError(
            f"lora_dropout={dropout}: PEFT has none for {settings['target_parameters'][0]} of a model with experts; 0"
        )
    # Code of unknown types need not take the arguments, nor have the methods, that PEFT's face of causal models asks for.
    task = "CAUSAL_LM" if not isinstance(of, Denoiser) or not of.calling.own_code else None
    common = {
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "bias": "none",
        "task_type": task,
        **settings,
        **more,
    }
    return MaskGatedLoraConfig(**common, facts=facts_of(model)) if gated else LoraConfig(**common)


@dataclass
class DiffusionModelConfig(ModelConfig):
    """TRL's `ModelConfig` whose LoRA dropout is 0 unless it is asked for, and which refuses what would be ignored."""

    lora_dropout: float = field(
        default=0.0,
        metadata={
            "help": "LoRA dropout. 0 by default: with dropout the ratio of the new to the old policy is not 1 at the "
            "first inner iteration of reinforcement learning."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_revision()
        if not self.use_peft:
            adapter = ("lora_", "use_rslora", "use_dora", "load_in_", "bnb_", "use_bnb_")
            said = [
                one.name
                for one in fields(self)
                if one.name.startswith(adapter) and getattr(self, one.name) != one.default
            ]
            if said:
                raise ValueError(f"{', '.join(said)} would be ignored: settings of an adapter need use_peft: true")
        else:
            check_sizes(self.lora_r, self.lora_alpha, self.lora_dropout)
        if self.lora_task_type != "CAUSAL_LM":
            raise ValueError(f"lora_task_type={self.lora_task_type!r}: the task follows from the model's family")
        if self.lora_target_parameters is not None:
            raise ValueError("lora_target_parameters: lora_target_modules takes stacked experts as well")
        if not (self.load_in_4bit or self.load_in_8bit):
            return
        if find_spec("bitsandbytes") is None:
            raise ValueError(
                "load_in_4bit and load_in_8bit need bitsandbytes, which is not installed: `pip install "
                "bitsandbytes`, or leave them out and keep the base's weights as they are"
            )
        if self.load_in_4bit and self.dtype in (None, "auto"):
            raise ValueError(
                f"load_in_4bit needs a dtype to compute in (bfloat16, float16, float32), not {self.dtype!r}"
            )

    def _check_revision(self) -> None:
        name = self.model_name_or_path
        if name is None or self.model_revision == "main":
            return
        place, _ = adapter_and_base(name) or (name, None)
        if place.startswith(EMBEDDED) or Path(place).is_dir():
            raise ValueError(
                f"model_revision={self.model_revision!r} would be ignored: model_name_or_path={name!r} is on this machine, "
                "and revisions are the hub's"
            )


def loading_of(arguments: ModelConfig) -> dict[str, Any]:
    """Arguments of `Denoiser.from_pretrained` that say how to load: revision, dtype, attention, quantisation."""
    from trl import get_quantization_config

    loading: dict[str, Any] = {"revision": arguments.model_revision, "dtype": arguments.dtype or "auto"}
    if arguments.attn_implementation is not None:
        loading["attn_implementation"] = arguments.attn_implementation
    if arguments.load_in_4bit or arguments.load_in_8bit:
        loading["quantization_config"] = get_quantization_config(arguments)
    return loading


def peft_config_of(
    arguments: ModelConfig,
    of: "Denoiser | torch.nn.Module",
    *,
    ratios: bool = False,
    gated: bool = False,
    saved: Sequence[str] = (),
    **more: Any,
) -> "LoraConfig | None":
    """The adapter that TRL's flags (`use_peft`, `lora_r`, ...) ask for, or None.

    Args:
        arguments: the flags.
        of: a denoiser, or one of transformers' models.
        ratios: the trainer forms ratios of policies: then dropout is warned of.
        gated: as in `lora_config`.
        saved: modules that are trained and saved whole beside those that the flags name.
        more: further fields of `LoraConfig`.
    """
    if not arguments.use_peft:
        return None
    if ratios and arguments.lora_dropout > 0:
        warnings.warn(
            f"lora_dropout={arguments.lora_dropout}: the new and the old policy are scored under different dropout masks, "
            "so their ratio is not 1 at the first inner iteration; lora_dropout: 0 makes it 1",
            stacklevel=2,
        )
    more |= {"use_rslora": arguments.use_rslora, "use_dora": arguments.use_dora}
    if whole := [*saved, *(arguments.lora_modules_to_save or ())]:
        more["modules_to_save"] = whole
    if arguments.model_revision != "main":
        more["revision"] = arguments.model_revision
    settings = arguments.lora_r, arguments.lora_alpha, arguments.lora_dropout, arguments.lora_target_modules
    return lora_config(of, *settings, gated=gated, **more)
