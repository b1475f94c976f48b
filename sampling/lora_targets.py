"""Where adapters lie in a model: modules inside its transformer blocks, and the patterns by which PEFT finds them.

A target is the end of a path inside a block, layer numbers left out, under the names of transformers' own classes. Leaves
out which targets an adapter gets: `lockstitch.rl.lora`.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

_TAKEN_FOR_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj")
_BLOCK = r"(?:.*\.)?(?:layers|blocks|block_groups)\.(?:\d+\.)+"


def target_pattern(targets: Iterable[str]) -> str:
    """The regular expression, for PEFT's `target_modules`, of modules inside blocks whose paths end in a target."""
    ends = "|".join(r"(?:\.\d+)*\.".join(map(re.escape, target.split("."))) for target in targets)
    return rf"{_BLOCK}(?:.*\.)?(?:{ends})"


def block_modules(model: nn.Module) -> list[str]:
    """Paths of the linear maps inside the blocks: what can be a target."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and re.match(_BLOCK, name)]


def stacked_experts(model: nn.Module) -> list[str]:
    """Paths of the stacked weights of routed experts inside the blocks: three dimensions, the first one the expert's."""
    return [name for name, weight in model.named_parameters() if weight.ndim == 3 and re.match(_BLOCK, name)]


def targets_of(maps: Sequence[str], stacked: Sequence[str] = (), has_experts: bool = False) -> dict[str, Any]:
    """PEFT's `target_modules` and `target_parameters` for linear maps and stacked weights at these paths.

    In models with routed experts PEFT takes the names of the MLP's maps for those that the experts had before they were
    stacked, and would adapt the experts in their place: there, such maps are targeted by their weights.
    """
    ends = sorted({short_path(path) for path in maps})
    taken = [end for end in ends if has_experts and end.rpartition(".")[2] in _TAKEN_FOR_EXPERTS]
    free = [end for end in ends if end not in taken]
    weights = [*(f"{end}.weight" for end in taken), *sorted({short_path(path) for path in stacked})]
    return {"target_modules": target_pattern(free) if free else [], "target_parameters": weights or None}


def short_path(path: str) -> str:
    """A module's path inside its block, numbers left out."""
    inside = re.sub(rf"^{_BLOCK}", "", path)
    return ".".join(part for part in inside.split(".") if not part.isdigit())
