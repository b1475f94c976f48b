"""Adapters on their bases: loaded to be sampled from as they are, or merged into the weights to be trained from.

An adapter under the names of a family's own code is put under transformers' first. Leaves out training adapters:
`lockstitch.rl.lora`; and checked merges: `lockstitch.rl.merge`.
"""

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from lockstitch.sampling.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter, find_adapter, read_facts
from lockstitch.sampling.adapter_names import in_published_names, native_adapter
from lockstitch.sampling.families import FACTS, translation_of
from lockstitch.sampling.loading import load_model, loaded_from, read_config
from lockstitch.sampling.mask_gate import as_gated, install_gate, is_gated
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from lockstitch.files import to_json


def put_on(base: PreTrainedModel, directory: Path) -> PeftModel:
    """The adapter in a directory on its base, in evaluation mode; also where its names are those of the family's own code.

    Raises `ValueError` in one line where it does not fit the base: other shapes, or tensors that are missing or left over.
    """
    with loaded_from(f"the adapter {str(directory)!r}"):
        weights = load_file(directory / ADAPTER_WEIGHTS)
    published = (getattr(base.config, FACTS, None) or {}).get("published_config") or {}
    translation = translation_of(published)
    if translation is None or not in_published_names(weights, translation):
        return _loaded(base, directory, directory)
    config = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    weights, config = native_adapter(weights, config, translation, base)
    with tempfile.TemporaryDirectory() as scratch:
        save_file(weights, Path(scratch) / ADAPTER_WEIGHTS)
        (Path(scratch) / ADAPTER_CONFIG).write_text(to_json(config), encoding="utf-8")
        return _loaded(base, Path(scratch), directory)


def _loaded(base: PreTrainedModel, directory: Path, shown: Path) -> PeftModel:
    """PEFT's own loading, which passes over what does not fit or says it in a hundred lines."""
    with loaded_from(f"the adapter {str(shown)!r}"):
        config = PeftConfig.from_pretrained(str(directory))
    config = as_gated(config, read_facts(shown))
    if config.is_prompt_learning:
        raise ValueError(
            f"the adapter {str(shown)!r} is learned prompts, which the sampler's canvases leave no place for"
        )
    name = base.config._name_or_path
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # said below
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # PEFT asks by the old name
            model = PeftModel.from_pretrained(base, str(directory), config=config)
    except (RuntimeError, ValueError, KeyError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        what = next((line for line in lines if "size mismatch" in line), lines[0]).rstrip(".")
        raise ValueError(f"the adapter {str(shown)!r} does not fit its base {name!r}: {what}") from error
    there = set(load_file(directory / ADAPTER_WEIGHTS))
    missing = get_peft_model_state_dict(model, save_embedding_layers=False).keys() - there
    left = there - get_peft_model_state_dict(model, save_embedding_layers=True).keys()
    for what, names in (("lacks", missing), ("has left over", left)):
        if names:
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            raise ValueError(
                f"the adapter {str(shown)!r} does not fit its base {name!r}: it {what} "
                f"{', '.join(sorted(names)[:2])}{more}"
            )
    return (install_gate(model) if is_gated(model) else model).eval()


def adapted(base: PreTrainedModel, adapter: Adapter) -> PeftModel:
    """A found adapter on its base; `ValueError` in one line where it does not fit."""
    return put_on(base, adapter.directory)


def to_train_from(model: Any, path: str) -> Any:
    """What a training run starts from: an adapter merged into its base, which then has the adapter's name; else the model.

    A new adapter (or the whole model) is then trained on top, and a frozen reference is where the run began. Raises
    `ValueError` for what cannot be merged.
    """
    if not isinstance(model, PeftModel):
        return model
    reason = no_merge(model)
    if reason is not None:
        raise ValueError(f"the adapter {path!r} cannot be trained from: {reason}")
    weights = [weight for layer in _layers(model) for weight in layer.get_base_layer().parameters()]
    if not all(weight.is_floating_point() for weight in weights):
        raise ValueError(
            f"the adapter {path!r} cannot be trained from with a quantised base: it would be rounded away in "
            "the merge; load_in_4bit and load_in_8bit take a whole model"
        )
    whole = model.merge_and_unload(safe_merge=True)
    whole.config._name_or_path = whole.name_or_path = path
    for weight in whole.parameters():
        weight.requires_grad_(True)
    return whole


def _layers(model: PeftModel) -> list[BaseTunerLayer]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def no_merge(model: PeftModel) -> str | None:
    """Why the adapter cannot be merged; None if it can.

    One that acts at mask positions alone is no matrix; and if it changes a head that is tied to the embeddings, or these,
    one matrix would have to take it up in two ways.
    """
    if is_gated(model):
        return "the adapter acts at mask positions alone, which no matrix of a merged model does"
    from peft.utils.other import AuxiliaryTrainingWrapper

    base = model.get_base_model()
    config = model.active_peft_config
    if not base.config.get_text_config().tie_word_embeddings or getattr(config, "ensure_weight_tying", False):
        return None
    ends: dict[str, torch.nn.Module] = {
        "embeddings": base.get_input_embeddings(),
        "head": base.get_output_embeddings(),
    }
    touched = [name for name, module in ends.items() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    if not touched:
        return None
    return (
        f"the adapter changes the {' and the '.join(touched)} of a base whose head is tied to its embeddings: whatever "
        "loads the merged model would make one matrix of the two again"
    )


def load_plain(path: str, revision: str | None = None, **loading: Any) -> PreTrainedModel | PeftModel:
    """A model of transformers' own as `load_model` loads it, or an adapter on such a base; nothing is made bidirectional."""
    adapter = find_adapter(path, revision)
    if adapter is None:
        return load_model(path, read_config(path, revision), revision=revision, **loading)
    base = load_plain(adapter.base, adapter.base_revision, **loading)
    return adapted(to_train_from(base, adapter.base), adapter)
