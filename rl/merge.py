"""Adapters folded into the weights of their base: for a while, exactly undone, and checked.

PEFT undoes a merge by subtracting what it added, which leaves the rounding of both in the weights. Here a merge writes to
new tensors (`safe_merge`, which also refuses weights that are not finite) and the old ones are put back.

Axes: B rows, L positions, V vocabulary.
"""

import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from lockstitch.sampling.adapters import no_merge
from lockstitch.sampling.mask_gate import is_gated
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

_BASE_LAYERS = re.compile(r"(?:\.base_layer)+\.")  # one for each adapted parameter of a module of several

# Largest ||merged - adapted|| / ||adapted|| of the probe's logits that passes, by the dtype of the base's weights.
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def _adapted(model: PeftModel) -> list[BaseTunerLayer]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def merged(model: PeftModel) -> Iterator[PeftModel]:
    """Within the block the active adapters are part of the base's weights; afterwards these are bit for bit what they were.

    Both copies of the adapted weights are held within the block. Raises `ValueError` for adapters that are not finite, and
    for a quantised base.
    """
    kept = [(weight, weight.data) for layer in _adapted(model) for weight in layer.get_base_layer().parameters()]
    if not all(data.is_floating_point() for _, data in kept):
        raise ValueError("the base is quantised: an adapter cannot be merged into its rounded weights without loss")
    try:
        model.merge_adapter(safe_merge=True)
        yield model
    finally:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already unmerged")  # where the merge broke off
            model.unmerge_adapter()
        for weight, data in kept:
            weight.data = data


def fingerprint(model: torch.nn.Module) -> int:
    """A checksum of the parameters' and buffers' names and bits, adapters left out, whether or not they are there."""
    check = 0
    for name, tensor in sorted((_plain_name(name), tensor) for name, tensor in model.state_dict().items()):
        if "lora_" in name or ".modules_to_save." in name:
            continue
        check = zlib.crc32(name.encode(), check)
        check = zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy(), check)
    return check


def whole_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """The weights of the whole model under the base's own names, while its adapters are `merged`."""
    active = model.active_adapter
    state = {}
    for name, tensor in model.get_base_model().state_dict().items():
        if "lora_" in name or ".original_module." in name:
            continue
        state[_BASE_LAYERS.sub(".", name).replace(f".modules_to_save.{active}.", ".")] = tensor
    return state


def _plain_name(name: str) -> str:
    name = name.removeprefix("base_model.model.")
    return _BASE_LAYERS.sub(".", name).replace(".original_module.", ".")


def probe_logits(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    """Logits `(B, L, V)` in float32, on the CPU, of two rows of 32 tokens that are always the same.

    Raises `ValueError` where they are not finite.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids_BL = torch.randint(vocabulary, (2, 32), generator=torch.Generator().manual_seed(0))
    if is_gated(model):  # which no token but the mask shows
        ids_BL[:, ::4] = model.active_peft_config.facts["mask_token_id"]
    with torch.no_grad():
        logits_BLV: torch.Tensor = model(input_ids=ids_BL.to(next(model.parameters()).device)).logits.float().cpu()
    if not logits_BLV.isfinite().all():
        raise ValueError("the logits are not finite: the adapter, or its base, is broken")
    return logits_BLV


def relative(found_BLV: torch.Tensor, expected_BLV: torch.Tensor) -> float:
    """`||found - expected|| / ||expected||`."""
    return float((found_BLV - expected_BLV).norm() / expected_BLV.norm())


@dataclass(frozen=True)
class Agreement:
    """How a merged model stands to the adapted one on the probe, relative to the norm of its logits.

    Attributes:
        error: how far the merged model's logits are from it; None for an adapter that cannot be merged.
        no_merge: why it cannot; None if it can.
        effect: how far the base's are: what the adapter does.
        tolerance: the largest error that passes in the base's dtype.
        dtype: of the base's weights.
    """

    error: float | None
    no_merge: str | None
    effect: float
    tolerance: float
    dtype: str


def check_merge(model: PeftModel) -> tuple[Agreement, torch.Tensor]:
    """Merges, compares, restores; returns the agreement and the adapted model's logits on the probe.

    An adapter that cannot be merged is only run. Raises `ValueError` where the merged and the adapted model disagree, or the
    base is not restored bit for bit.
    """
    dtype = next(_adapted(model)[0].get_base_layer().parameters()).dtype
    before = fingerprint(model)
    with model.disable_adapter():
        base_BLV = probe_logits(model)
    adapted_BLV = probe_logits(model)
    error, why_not = None, no_merge(model)
    if why_not is None:
        with merged(model):
            error = relative(probe_logits(model), adapted_BLV)
    if fingerprint(model) != before:
        raise ValueError("the base's weights are not bit for bit what they were before the merge")
    effect = relative(base_BLV, adapted_BLV)
    found = Agreement(error, why_not, effect, TOLERANCES[dtype], str(dtype).removeprefix("torch."))
    if error is not None and not error <= found.tolerance:
        raise ValueError(
            f"the merged model's logits are {error:.1e} from the adapted model's, relative to their norm; at "
            f"most {found.tolerance:g} is rounding in {found.dtype}"
        )
    return found, adapted_BLV
