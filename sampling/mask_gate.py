"""Adapters that act where the masks are and nowhere else: what is written is read by the parent, bit for bit.

A LoRA of PEFT whose output is added at the positions of mask tokens alone (I-DLM, 2604.11035: gated LoRA). It is saved as
an activated LoRA (aLoRA, 2504.12397) that the mask token invokes, so that PEFT, vLLM and whatever else reads an adapter's
directory runs the parent where an input holds no mask. Beside it, `diffusion.json` keeps what the base's own config.json
cannot: how the adapted model attends and predicts. PEFT's aLoRA acts from its invocation to the end of a row, which will not
do for masks in the middle of one, so here the gate takes its place.

Leaves out stacked experts, and merging: no one matrix acts at masks alone.

Axes: B rows, L positions, M of them masks, D inputs, O outputs of a linear map.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lockstitch.sampling.adapter_files import ADAPTER_FACTS
from lockstitch.sampling.families import FACTS
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.variants import ALoraLinearVariant
from transformers import PreTrainedModel

from lockstitch.files import to_json

_NO_MERGE = "an adapter that is gated to mask positions cannot be merged: no one matrix acts at masks alone"


@dataclass
class MaskGatedLoraConfig(LoraConfig):  # type: ignore[misc]
    """PEFT's configuration of a gated adapter; `gated` puts it on a model.

    Attributes:
        facts: what the adapted model is: family, layout, shift, block length, mask token, as config.json would say it.
    """

    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.facts.get("mask_token_id")) is not int:
            raise ValueError(f"facts={self.facts!r} name no mask_token_id, where the adapter is to act")
        for name in (
            "target_parameters",
            "use_dora",
            "modules_to_save",
            "trainable_token_indices",
            "alora_invocation_tokens",
        ):
            if getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)!r} does not go with a gate to mask positions")
        if self.bias != "none":
            raise ValueError(f"bias={self.bias!r} does not go with a gate to mask positions: none")

    def to_dict(self) -> dict[str, Any]:
        """What adapter_config.json holds: that of an activated LoRA."""
        values: dict[str, Any] = super().to_dict()
        facts = values.pop("facts")
        return {**values, "alora_invocation_tokens": [facts["mask_token_id"]]}

    def save_pretrained(self, save_directory: str, **more: Any) -> None:
        """Writes adapter_config.json, and `diffusion.json` beside it."""
        super().save_pretrained(save_directory, **more)
        (Path(save_directory) / ADAPTER_FACTS).write_text(to_json(self.facts), encoding="utf-8")


class _Gate:
    """Where the masks are in the pass that is under way."""

    def __init__(self, mask_id: int) -> None:
        self.mask_id = mask_id
        self.at_M: torch.Tensor | None = None
        self.size = 0

    def begin(self, _module: torch.nn.Module, _arguments: Any) -> None:
        """Before a pass of the whole model: nothing is known yet."""
        self.at_M = None

    def look(self, _module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        """Before the embedding of token ids `(B, L)`."""
        self.at_M = (arguments[0].flatten() == self.mask_id).nonzero()[:, 0]
        self.size = arguments[0].numel()


class _GatedVariant(ALoraLinearVariant):  # type: ignore[misc]
    """PEFT's extension point: how an adapted linear map computes, and that it does not merge."""

    def __init__(self, gate: _Gate) -> None:
        self.gate = gate

    def merge_safe(self, *_: Any, **__: Any) -> torch.Tensor:
        raise ValueError(_NO_MERGE)

    def merge_unsafe(self, *_: Any, **__: Any) -> None:
        raise ValueError(_NO_MERGE)

    def forward(
        self, module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        """Adds the adapter's output to what the base made of `x`, at masks alone."""
        at_M = self.gate.at_M
        if at_M is None or self.gate.size * x.shape[-1] != x.numel():
            raise ValueError("a gated adapter needs token ids (input_ids), by which it knows the mask positions")
        if not len(at_M):
            return result
        down, up = module.lora_A[active_adapter], module.lora_B[active_adapter]
        x_MD = module.lora_dropout[active_adapter](x.reshape(-1, x.shape[-1])[at_M].to(down.weight.dtype))
        added_MO = up(down(x_MD)) * module.scaling[active_adapter]
        result.view(-1, result.shape[-1]).index_add_(0, at_M, added_MO.to(result.dtype))
        return result


def gated(base: PreTrainedModel, config: MaskGatedLoraConfig) -> PeftModel:
    """A new adapter on its base, to be trained: acts at the mask token of `config.facts` alone."""
    return install_gate(get_peft_model(base, config))


def install_gate(model: PeftModel) -> PeftModel:
    """Gates the adapter that stands on a base under a `MaskGatedLoraConfig`."""
    config = model.active_peft_config
    assert isinstance(config, MaskGatedLoraConfig)
    base, gate = model.get_base_model(), _Gate(config.facts["mask_token_id"])
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.lora_variant[model.active_adapter] = _GatedVariant(gate)
    base.register_forward_pre_hook(gate.begin)
    base.get_input_embeddings().register_forward_pre_hook(gate.look)
    return model


def is_gated(model: torch.nn.Module) -> bool:
    """Whether a model bears an adapter that acts at mask positions alone."""
    return isinstance(model, PeftModel) and isinstance(model.active_peft_config, MaskGatedLoraConfig)


def as_gated(config: PeftConfig, facts: Mapping[str, Any] | None) -> PeftConfig:
    """The configuration of an adapter as it was read: a gated one where the mask token of its `facts` invokes it."""
    invoked = getattr(config, "alora_invocation_tokens", None)
    if facts is None or invoked != [facts.get("mask_token_id")]:
        return config
    values = {name: value for name, value in vars(config).items() if name in LoraConfig.__dataclass_fields__}
    return MaskGatedLoraConfig(**{**values, "alora_invocation_tokens": None}, facts=dict(facts))


def facts_of(model: PreTrainedModel) -> dict[str, Any]:
    """What a denoiser noted in its model's config, as `MaskGatedLoraConfig.facts` wants it."""
    facts: dict[str, Any] = json.loads(json.dumps(getattr(model.config, FACTS, None) or {}))
    facts.pop("published_config", None)
    return facts
