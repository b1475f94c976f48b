"""Checkpoints from a directory or the hub into transformers' own classes, and out again under their published names.

Config, tensor names and fused or stacked tensors are translated while transformers reads the shards (`families.py` says
how), so that there is never a second copy of a model in memory. What a checkpoint lacks, or has beside what its class takes,
is refused. Leaves out models that run their own code: `remote.py`.
"""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from lockstitch.sampling.adapter_files import find_adapter
from lockstitch.sampling.families import FACTS, Family, Translation, family_of, native_values, translation_of
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from lockstitch import EMBEDDED, adapter_and_base, model_name, model_path

logger = logging.getLogger(__name__)

# What libraries raise of their own for files that are not as they should be.
_OF_FILES = (SafetensorError, StrictDataclassError)
_READ_MASKS = ("eager", "sdpa")  # the attention of transformers that reads masks of four dimensions
_PUBLISHED = "published_config"  # beside the facts: config.json as the authors wrote it


def read_config(path: str, revision: str | None = None) -> dict[str, Any]:
    """A checkpoint's config.json as it stands, or that of an adapter's base, with what the adapter says that it is.

    Raises `ValueError` in one line where there is none to read.
    """
    adapter = find_adapter(path, revision)
    if adapter is not None:
        try:
            raw = read_config(adapter.base, adapter.base_revision)
        except ValueError as error:
            raise ValueError(f"the base of the adapter {path!r} cannot be loaded: {error}") from error
        return raw if adapter.facts is None else {**raw, FACTS: {**(raw.get(FACTS) or {}), **adapter.facts}}
    path = model_path(path)
    try:
        raw, _ = PretrainedConfig.get_config_dict(path, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(f"no model at {path!r}: {_first_line(error)}") from error
    if not raw.get("model_type"):
        raise ValueError(f"no model at {path!r}: there is no config.json, or one without a model_type")
    return dict(raw)


def load_tokenizer(path: str, revision: str | None = None, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer beside a checkpoint: transformers' own class also where the checkpoint brings code for it.

    That of an adapter is the one beside it, else its base's. Raises `ValueError` in one line where there is none that can be
    read.
    """
    adapter = find_adapter(path, revision)
    if adapter is not None and not adapter.has_tokenizer:
        return load_tokenizer(adapter.base, adapter.base_revision, trust_remote_code)
    path = model_path(path)
    raw = read_config(path, revision)
    translation = None if trust_remote_code else translation_of(raw)
    told: dict[str, Any] = {} if translation is None else {"config": native_config(raw, translation)}
    with loaded_from(f"the tokenizer of {path!r}"):
        path = (adapter_and_base(path) or (path,))[0]  # of an adapter on another base: what lies beside the adapter
        if translation is not None and translation.tokenizer and _brings_tokenizer(path, revision):
            return getattr(transformers, translation.tokenizer).from_pretrained(path, revision=revision)
        return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code, **told)
    raise AssertionError("loaded_from passes nothing over")


def padding_id(tokenizer: Tokenizer, eos_ids: Sequence[int], vocabulary: int) -> int:
    """The padding token: the tokenizer's, if it has one that the model knows too, else the first that ends a text."""
    named: int | None = tokenizer.pad_token_id
    return named if named is not None and named < vocabulary else eos_ids[0]


def _brings_tokenizer(path: str, revision: str | None) -> bool:
    from transformers.utils import cached_file

    file = cached_file(path, "tokenizer_config.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    return file is not None and "auto_map" in json.loads(Path(file).read_text(encoding="utf-8"))


@contextmanager
def loaded_from(what: str) -> Iterator[None]:
    """Within the block, a library reads somebody's files: what it cannot read is a `ValueError` of one line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, *_OF_FILES) as error:
        raise ValueError(f"{what} cannot be loaded: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@cache
def _native_class(name: str) -> Any:
    found = getattr(transformers, name, None)
    if found is None:
        raise ValueError(f"this transformers ({transformers.__version__}) has no {name}; a newer one does")
    return found


def native_config(raw: Mapping[str, Any], translation: Translation) -> PretrainedConfig:
    """The config of the native class for a published config.json, which it keeps for the way back."""
    config_class = _native_class(translation.native).config_class
    plain = config_class()
    known = {"rope_theta", "partial_rotary_factor", "mask_token_id", *plain.to_dict(), *plain.attribute_map}
    values = native_values(raw, translation, known.__contains__)
    scaling = raw.get("rope_scaling")
    if "rope_parameters" in values:
        values = {key: value for key, value in values.items() if key not in ("rope_theta", "partial_rotary_factor")}
    elif scaling:
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        values["rope_parameters"] = {**scaling, "rope_type": kind, "rope_theta": raw.get("rope_theta", 10_000.0)}
    config: PretrainedConfig = config_class(**values)
    config.dtype = raw.get("dtype") or raw.get("torch_dtype")
    config.diffusion = {_PUBLISHED: dict(raw)}
    return config


def transforms(translation: Translation) -> list[Any]:
    """transformers' weight conversions from the published names to the native ones, and to its own stacked tensors."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import Split, WeightConverter, WeightRenaming

    own = [WeightRenaming(published, native) for published, native in translation.names]
    split = [WeightConverter([one], list(several), [Split(dim=0)]) for one, several in translation.fused]
    native = _native_class(translation.native)
    return [*own, *split, *(get_checkpoint_conversion_mapping(native.config_class.model_type) or [])]


@cache
def _reader(native: str, of: str) -> Any:
    """A class of transformers' under a name of its own, so that its weight conversions are those of a family alone."""
    return type(f"{native}From{of}", (_native_class(native),), {"__module__": __name__})


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device of that name, by default the accelerator, if there is one that holds what noise is drawn in (float64).

    Apple's does not: there it is the CPU. Raises `ValueError` for a device that this machine lacks, and for such a one.
    """
    # A build for an accelerator names it even on a machine that has none.
    named = device or torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        torch.zeros(1, dtype=torch.float64, device=named).cpu()
        return torch.device(named)
    except TypeError as error:
        if device is not None:
            raise ValueError(f"device={str(device)!r} cannot be used here: {_first_line(error)}") from error
        logger.warning("the accelerator %s has no float64, in which noise is drawn: the CPU is used", named)
        return torch.device("cpu")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device={str(named)!r} cannot be used here: {_first_line(error)}") from error


def load_causal(name: str, what: str, device: str | torch.device | None = None) -> tuple[Any, Tokenizer]:
    """A causal model and its tokenizer, of a directory or hub name: float32 on a CPU, its own dtype on an accelerator.

    Raises `ValueError` in one line, which begins with `what`, for what cannot be loaded, and for a device that is not there.
    """
    there = usable_device(device)
    with loaded_from(what):
        dtype = torch.float32 if there.type == "cpu" else "auto"
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(name)
    return model.to(there), tokenizer


def load_model(
    path: str,
    raw: Mapping[str, Any],
    *,
    dtype: torch.dtype | str = "auto",
    device: str | torch.device | None = None,
    revision: str | None = None,
    **loading: Any,
) -> PreTrainedModel:
    """The model of a checkpoint with this config.json, as a class of transformers' own, in evaluation mode.

    `device` is by default the accelerator, if there is one; `loading` goes to `from_pretrained`. Raises `ValueError` for
    what does not load whole: files that are missing or broken, tensors that are missing, left over or of another shape.
    """
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping

    path, translation = model_path(path), translation_of(raw)
    device = usable_device(device)
    if loading.get("quantization_config") is not None:  # its weights cannot be moved afterwards
        loading["device_map"] = {"": device}
    loading |= {"dtype": dtype, "revision": revision, "output_loading_info": True, "ignore_mismatched_sizes": True}
    with loaded_from(f"the config of {path!r}"):
        if translation is None:
            config = AutoConfig.from_pretrained(path, revision=revision)
        else:
            config = native_config(raw, translation)
    if translation is None:
        reader: Any = transformers.AutoModelForCausalLM
    else:
        reader = _reader(translation.native, translation.model_types[0])
        register_checkpoint_conversion_mapping(reader.__name__, transforms(translation), overwrite=True)
    with (
        loaded_from(f"the weights of {path!r}"),
        unreported("LOAD REPORT"),
    ):  # the report is `check_whole`'s, in a line
        model, info = reader.from_pretrained(path, config=config, **loading)
    check_whole(path, info)
    places = sorted({str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()})
    if len(places) > 1:
        raise ValueError(
            f"device_map puts {model_name(path)!r} on {', '.join(places)}: one device holds the model here; name it "
            "(device=)"
        )
    model.config._name_or_path = model.name_or_path = model_name(path)  # an adapter's config names it, on any machine
    warnings.filterwarnings(
        "ignore", f"Could not find a config file in {EMBEDDED}"
    )  # PEFT, where it saves such an adapter
    if translation is not None:
        model.__class__ = _native_class(translation.native)
        model._weight_conversions = None  # or saving would go back to the published names
    return (model if "device_map" in loading else model.to(device)).eval()


@contextmanager
def unreported(words: str) -> Iterator[None]:
    """Without what transformers' loading logs with these words in it."""
    reporter = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return words not in record.getMessage()

    reporter.addFilter(is_other)
    try:
        yield
    finally:
        reporter.removeFilter(is_other)


def check_whole(path: str, info: Mapping[str, Any]) -> None:
    """Raises `ValueError` in one line where a checkpoint lacks tensors of its model, or has others, or other shapes.

    `info` is the `loading_info` of transformers' `from_pretrained`.
    """
    left = [name for name in info["unexpected_keys"] if not name.endswith("rotary_emb.inv_freq")]
    shapes = [f"{name} {tuple(there)}, not {tuple(wanted)}" for name, there, wanted in info["mismatched_keys"]]
    for what, names in (
        ("lacks", sorted(info["missing_keys"])),
        ("has left over", sorted(left)),
        ("has", sorted(shapes)),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"the checkpoint {path!r} does not fit its config.json: it {what} {', '.join(names[:3])}{more}"
            )


def write_facts(model: PreTrainedModel, family: Family, mask_id: int) -> None:
    """Notes in a model's config what it is, so that what is saved of it loads without being told."""
    kept = (getattr(model.config, FACTS, None) or {}).get(_PUBLISHED)
    facts: dict[str, Any] = {
        "family": family.name,
        "layout": family.layout,
        "shifted": family.shifted,
        "block_length": family.block_length,
        "mask_token_id": mask_id,
    }
    setattr(model.config, FACTS, facts | ({_PUBLISHED: kept} if kept is not None else {}))


def published_config(config: PretrainedConfig) -> dict[str, Any]:
    """The config.json that the authors' own code reads, for a model that was loaded from it; `ValueError` for others."""
    kept = (getattr(config, FACTS, None) or {}).get(_PUBLISHED)
    if kept is None:
        raise ValueError(
            "names=published: this model was not read from a family's published checkpoint, so there are no "
            "published names to go back to; names=native"
        )
    return dict(kept)


def save_published(
    model: PreTrainedModel, directory: Path, state_dict: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Writes a model under its family's published names, with the config.json that its authors' code reads.

    `state_dict` is what is written in the place of the model's own weights.

    Raises `ValueError` for a model that was not read from a published checkpoint, and for one whose vocabulary has changed.
    """
    raw = published_config(model.config)
    translation = translation_of(raw)
    assert translation is not None
    before = native_config(raw, translation)
    if before.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"names=published: the vocabulary was {before.vocab_size} tokens in the published checkpoint and "
            f"is {model.config.vocab_size} now"
        )
    model._weight_conversions = transforms(translation)
    try:
        model.save_pretrained(directory, state_dict=None if state_dict is None else dict(state_dict))
    finally:
        model._weight_conversions = None
    dtype = str(model.dtype).removeprefix("torch.")
    key = "dtype" if "dtype" in raw else "torch_dtype"
    (directory / "config.json").write_text(json.dumps({**raw, key: dtype}, indent=2) + "\n", encoding="utf-8")


def reads_masks(model: PreTrainedModel) -> bool:
    """Whether a model's attention reads masks of four dimensions; flash attention takes them for masks of padding."""
    return getattr(model.config, "_attn_implementation", None) in (None, *_READ_MASKS)


def check_masks(model: PreTrainedModel, what: str) -> None:
    """Raises `ValueError`, in which `what` needs them, where a model does not read masks of four dimensions."""
    if not reads_masks(model):
        attention, accepted = model.config._attn_implementation, " or ".join(map(repr, _READ_MASKS))
        raise ValueError(f"attn_implementation={attention!r}: {what} needs masks of four dimensions; {accepted}")


def is_remote(raw: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's type is neither transformers' own nor translated, so that it runs code of its own."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return translation_of(raw) is None and raw["model_type"] not in CONFIG_MAPPING


def layout_of(path: str, family: str | None = None, revision: str | None = None) -> tuple[Family, dict[str, Any]]:
    """The family of a checkpoint and its config.json, before any weights are loaded."""
    raw = read_config(path, revision)
    return family_of(raw, family), raw
