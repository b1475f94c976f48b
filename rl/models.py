"""What a trainer is given as its model, as TRL's trainers take it: a name, a directory, a model, or a `Denoiser`."""

from pathlib import Path
from typing import Any

from lockstitch.sampling.adapters import to_train_from
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.families import family_of
from lockstitch.sampling.loading import load_tokenizer
from peft import PeftModel
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from trl.models import prepare_deepspeed, prepare_fsdp


def loading_of_arguments(model: Any, args: Any) -> dict[str, Any]:
    """What a trainer's arguments say of how a model that is named is loaded; nothing without arguments."""
    loading = dict(getattr(args, "model_init_kwargs", None) or {})
    if isinstance(model, str | Path) and getattr(args, "trust_remote_code", False):
        loading.setdefault("trust_remote_code", True)
    return loading


def as_denoiser(
    model: Any, processing_class: Tokenizer | None = None, loading: dict[str, Any] | None = None
) -> Denoiser:
    """The denoiser of what stands where a trainer wants its model.

    Args:
        model: a name on the hub, a directory, `embedded:NAME`, one of transformers' models (with an adapter or not), or a
            `Denoiser`. Where a name or directory holds an adapter, it is merged into its base, to be trained from.
        processing_class: the tokenizer; by default the one beside the model.
        loading: for a name, arguments of `Denoiser.from_pretrained` (TRL's `model_init_kwargs`); as in TRL, weights are in
            float32 where they say nothing else.

    Raises `ValueError` for what is none of these, for a model whose config tells no diffusion family, and for arguments that
    would be ignored.
    """
    if isinstance(model, str | Path):
        denoiser = Denoiser.from_pretrained(str(model), **{"dtype": "float32", **(loading or {})})
        denoiser.model = to_train_from(denoiser.model, str(model))
        return denoiser if processing_class is None else _with(denoiser, processing_class)
    if loading:
        raise ValueError(f"model_init_kwargs={loading!r} would be ignored: the model is loaded already")
    if isinstance(model, Denoiser):
        return model if processing_class is None else _with(model, processing_class)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, PreTrainedModel):
        raise ValueError(
            f"model is a {type(model).__name__}: a name, a directory, a model of transformers, or a Denoiser"
        )
    tokenizer = processing_class or load_tokenizer(base.config._name_or_path)
    denoiser = Denoiser(base, tokenizer, family_of(base.config.to_dict()))
    denoiser.model = model
    return denoiser


def _with(denoiser: Denoiser, tokenizer: Tokenizer) -> Denoiser:
    return Denoiser(denoiser.model, tokenizer, denoiser.family, denoiser.mask_id, denoiser.calling)


def prepare_frozen(trainer: Any, model: Any) -> Any:
    """A model that is not trained (a reference, a teacher), in evaluation mode, as a trainer wants it beside its own."""
    if trainer.is_deepspeed_enabled:
        return prepare_deepspeed(model, trainer.accelerator)
    if trainer.is_fsdp_enabled:
        return prepare_fsdp(model, trainer.accelerator)
    return trainer.accelerator.prepare_model(model, evaluation_mode=True)


def name_of(model: Any) -> str:
    """What a run of a model is called: the last part of its name."""
    inner = model.model if isinstance(model, Denoiser) else model
    name = str(inner) if isinstance(inner, str | Path) else inner.config._name_or_path
    return name.rstrip("/").rpartition("/")[2].rpartition(":")[2] or "model"
