"""Checkpoints of unknown types, which bring their own code: tried on a few tokens before anything is asked of them.

Published code differs in what it honours: some of it ignores attention masks, or reads them inverted, takes no positions,
no cache and no choice of columns, or answers nothing in training mode; and with today's transformers the buffers that it
does not save, such as rotary frequencies, are left as whatever was in memory. What a model does is seen here once, at
loading, and what it does not is switched off or refused by name: a full-attention model whose code ignores masks is run
on rows of one length.
"""

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from lockstitch.sampling.families import Family
from lockstitch.sampling.loading import unreported, usable_device
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache, PreTrainedModel

# How far the logits of two passes lie apart that add the same numbers in another order. In half precision as a share of
# their length: a published model of 135 M parameters is at .07 (bfloat16) and .01 (float16), at .2 where padding is seen.
_CLOSE = {torch.float16: 0.04, torch.bfloat16: 0.12}
_EQUAL = 1e-3  # of the largest logit


@dataclass(frozen=True)
class Calling:
    """What can be asked of a model.

    Attributes:
        honours_mask: whether an attention mask with positions hides padding; if not, rows of one length run together.
        keeps_columns: whether the head can be asked for some columns alone (`logits_to_keep`).
        keeps_keys: whether it takes a transformers `Cache`, with masks of four dimensions, so that keys and values can be
            kept between passes.
        trains: whether it answers in training mode as in evaluation.
        own_code: whether the checkpoint brought it along; if not, it is a class of transformers'.
        lacking: each thing that it does not do, in words.
    """

    honours_mask: bool = True
    keeps_columns: bool = True
    keeps_keys: bool = True
    trains: bool = True
    own_code: bool = True
    lacking: tuple[str, ...] = ()


NATIVE = Calling(own_code=False)
_WORDS = {
    "honours_mask": "its code does not hide padding by an attention mask: rows of one length run together, and training and "
    "caches that need masks are refused",
    "keeps_columns": "its code computes logits of all columns, whichever are asked for",
    "keeps_keys": "its code does not keep keys in a cache of transformers', or reads no mask of four dimensions beside it: "
    "cache='none' alone",
    "trains": "its code answers otherwise, or not at all, in training mode: it can be sampled from, not trained",
}


def load_remote(
    path: str,
    family: Family,
    *,
    dtype: torch.dtype | str = "auto",
    device: str | torch.device | None = None,
    revision: str | None = None,
    **loading: Any,
) -> tuple[PreTrainedModel, Calling]:
    """A checkpoint by the code that it brings, and what that code does of what is asked of a model.

    Raises `ValueError` in one line where it does not load, for a device that this machine lacks, where its buffers are not
    what its config says, and for a family that needs what its code does not do.
    """
    device = usable_device(device)
    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=True)
        auto_map = getattr(config, "auto_map", None) or {}
        face: Any = AutoModel if auto_map and "AutoModelForCausalLM" not in auto_map else AutoModelForCausalLM
        with unreported("has generative capabilities"):  # of a `generate` that nobody calls here
            model = face.from_pretrained(
                path, config=config, dtype=dtype, revision=revision, trust_remote_code=True, **loading
            )
    except Exception as error:
        what = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        raise ValueError(f"the code of {path!r} does not load with this transformers: {what}") from error
    model = (model if "device_map" in loading else model.to(device)).eval()
    with unreported("has generative capabilities"):
        mend_buffers(model)
    return model, probe(model, family)


def mend_buffers(model: PreTrainedModel) -> None:
    """Gives buffers that are not saved the values that a new model has; `ValueError` where none can be made.

    Such a buffer (rotary frequencies, tables of sines, masks) is made on no device while weights stream in, and comes back
    as what was in memory. So the model is made once more, its parameters on no device.
    """
    unsaved = {
        f"{path}.{name}".lstrip(".")
        for path, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    if not unsaved:
        return
    try:
        with init_empty_weights(include_buffers=False):
            expected = dict(type(model)(copy.deepcopy(model.config)).named_buffers())
    except Exception as error:
        what = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        raise ValueError(
            f"buffers that are not saved ({', '.join(sorted(unsaved))}) were left uninitialised by loading, and no model "
            f"can be made to take them from: {what}"
        ) from error
    mended = []
    for name, buffer in model.named_buffers():
        if name not in unsaved:
            continue
        if name not in expected or expected[name].shape != buffer.shape:
            raise ValueError(
                f"the buffer {name} is not saved, and a new model has none of its shape {tuple(buffer.shape)}"
            )
        if not torch.equal(value := expected[name].to(buffer), buffer):
            buffer.data = value
            mended.append(name)
    if mended:
        warnings.warn(f"left uninitialised by loading, and computed anew: {', '.join(mended)}", stacklevel=3)


@torch.no_grad()
def probe(model: PreTrainedModel, family: Family) -> Calling:
    """Sees by a few tokens what a model's code does; `ValueError` where the family needs what it does not."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = (torch.arange(12, device=model.device) * 7919 % max(2, vocabulary - 3) + 1).clamp(max=vocabulary - 1)[None]
    plain = _answer(model, input_ids=ids)
    if plain is None or plain.shape != (1, 12, plain.shape[-1]) or not bool(plain.isfinite().all()):
        raise ValueError("its code gives no finite logits for every token of model(input_ids=...)")
    columns = torch.tensor([3, 7], device=ids.device)
    found = {
        "honours_mask": _hides_padding(model, ids, plain, family),
        "keeps_columns": _same(model, _answer(model, input_ids=ids, logits_to_keep=columns), plain[:, columns]),
        "keeps_keys": _keeps_keys(model, ids, plain, family),
    }
    model.train()
    trained = _answer(model, input_ids=ids)
    answers = trained is not None and trained.shape == plain.shape
    found["trains"] = _same(model, trained, plain) or (answers and _has_dropout(model))
    model.eval()
    if family.layout != "full" and not found["honours_mask"]:
        raise ValueError(
            f"{family.name} models need masks of four dimensions, (rows, 1, queries, keys), added to attention, and its "
            "code does not read them so"
        )
    return Calling(**found, lacking=tuple(_WORDS[name] for name, holds in found.items() if not holds))


def _same(model: PreTrainedModel, logits: torch.Tensor | None, wanted: torch.Tensor) -> bool:
    """Whether logits are those that are wanted, as close as the model's precision allows."""
    close = _CLOSE.get(model.dtype)
    if close is None or logits is None or logits.shape != wanted.shape:
        return _equal(logits, wanted)
    return bool((logits.float() - wanted.float()).norm() <= close * wanted.float().norm())


def _equal(logits: torch.Tensor | None, wanted: torch.Tensor) -> bool:
    if logits is None or logits.shape != wanted.shape:
        return False
    return bool((logits - wanted).abs().max() <= _EQUAL * wanted.abs().max())


def _has_dropout(model: torch.nn.Module) -> bool:
    return any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())


def _answer(model: torch.nn.Module, **arguments: Any) -> torch.Tensor | None:
    """A model's logits, or None where its code cannot take the arguments."""
    try:
        logits: torch.Tensor | None = model(**arguments).logits
    except Exception:  # noqa: BLE001  (somebody else's code, asked whether it can)
        return None
    return logits if logits is None or bool(logits.isfinite().all()) else None


def _padded(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tokens behind five of padding, with the attention mask and the positions that go with them."""
    padded = torch.cat([ids[:, -1:].repeat(1, 5), ids], 1)
    real = torch.ones_like(padded)
    real[:, :5] = 0
    return padded, real, (real.cumsum(1) - 1).clamp(min=0)


def _hides_padding(model: PreTrainedModel, ids: torch.Tensor, plain: torch.Tensor, family: Family) -> bool:
    """Whether padding on the left changes nothing, and under a layout of blocks whether a mask of one's own is read."""
    padded, real, position = _padded(ids)
    if family.layout == "full":
        logits = _answer(model, input_ids=padded, attention_mask=real, position_ids=position)
        return logits is not None and _same(model, logits[:, 5:], plain)
    block = torch.arange(12, device=ids.device) // 4
    mask = torch.zeros(12, 12, device=ids.device, dtype=model.dtype)
    mask.masked_fill_(block[None] > block[:, None], torch.finfo(model.dtype).min)
    whole = _answer(model, input_ids=ids, attention_mask=mask[None, None])
    first = _answer(model, input_ids=ids[:, :8], attention_mask=mask[None, None, :8, :8])
    other = _answer(model, input_ids=ids.flip(1), attention_mask=mask[None, None])
    if whole is None or first is None or other is None:
        return False
    # Later blocks are hidden; within a block what comes later is seen.
    changed = ids.clone()
    changed[0, 3] = (changed[0, 3] + 1) % plain.shape[-1]
    within = _answer(model, input_ids=changed, attention_mask=mask[None, None])
    return _same(model, whole[:, :8], first) and within is not None and not _equal(within[:, :1], whole[:, :1])


def _keeps_keys(model: PreTrainedModel, ids: torch.Tensor, plain: torch.Tensor, family: Family) -> bool:
    """Whether keys that a first pass leaves in a cache are what a second one, over other tokens, sees."""
    try:
        keys = DynamicCache()
        model(input_ids=ids, past_key_values=keys, use_cache=True)
        if keys.get_seq_length() != ids.shape[1]:
            return False
        position = torch.arange(12, 16, device=ids.device)[None]
        behind = model(input_ids=ids[:, :4], past_key_values=keys, position_ids=position, use_cache=True).logits
    except Exception:  # noqa: BLE001  (somebody else's code, asked whether it can)
        return False
    if keys.get_seq_length() != 16 or behind is None or _same(model, behind, plain[:, :4]):
        return False
    # Positions that are not read would be those of the kept keys again.
    apart = _answer(model, input_ids=ids, position_ids=2 * torch.arange(12, device=ids.device)[None])
    if apart is None or _equal(apart, plain):
        return False
    return family.layout != "full" or _hides_kept_padding(model, ids, plain, behind)


def _hides_kept_padding(model: PreTrainedModel, ids: torch.Tensor, plain: torch.Tensor, behind: torch.Tensor) -> bool:
    """Whether an added mask of four dimensions hides padding from a whole pass, and from one that sees its keys."""
    padded, real, position = _padded(ids)
    keys, real = DynamicCache(), torch.cat([real, real[:, -4:]], 1)
    mask = torch.zeros(1, 1, 17, 21, device=ids.device, dtype=model.dtype)
    mask.masked_fill_(real[:, None, None] == 0, torch.finfo(model.dtype).min)
    told = {"past_key_values": keys, "use_cache": True}
    first = {"input_ids": padded, "attention_mask": mask[..., :17], "position_ids": position}
    second = {
        "input_ids": ids[:, :4],
        "attention_mask": mask[:, :, :4],
        "position_ids": torch.arange(12, 16, device=ids.device)[None],
    }
    whole, later = (_answer(model, **one, **told) for one in (first, second))
    return whole is not None and _same(model, whole[:, 5:], plain) and _same(model, later, behind)
