"""How a process reward model reads a question with its steps, and the classifier that does: any of our models with a head.

Prompt and steps stand one after another, each step followed by a separator and scored at its last token, as TRL's stepwise
supervision has it. What a step's token sees is the model's `attention`:

- `causal`: everything before it, as autoregressive models read. One pass scores every step as one pass per prefix would.
- `steps`: for models that attend fully. A token sees the prompt, all steps before its own and all of its own, so that what
  it says of a step depends on nothing after that step: one pass is one pass per prefix here too.
- `full`: everything, later steps and the answer too. A score then is of a step in its finished trace, and may change when
  the trace goes on otherwise.

The layout is kept beside the weights (`step_reader.json`), so that a model is read as it was trained.

Axes: B rows, L positions, N steps.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lockstitch.sampling.chat import Chat
from lockstitch.sampling.denoiser import make_bidirectional, make_causal
from lockstitch.sampling.loading import loaded_from, usable_device
from torch import nn
from transformers import PreTrainedModel

from lockstitch.files import to_json, write_whole

READER = "step_reader.json"
ATTENTION = ("causal", "steps", "full")
LABELS = {0: "wrong", 1: "right"}


@dataclass(frozen=True)
class Reader:
    """How a prompt with steps is put to the model.

    Attributes:
        attention: see the module's first lines.
        separator: follows every step.
        chat_template: whether the prompt goes through the tokenizer's chat template.
        system_prompt: what a conversation begins with.
        task: the task whose steps it was trained on, where it was one of ours.
        family: of the diffusion model under the head, where its config does not say.

    Raises `ValueError` for another attention, or a separator that is empty.
    """

    attention: str
    separator: str = "\n"
    chat_template: bool = False
    system_prompt: str | None = None
    task: str | None = None
    family: str | None = None

    def __post_init__(self) -> None:
        if self.attention not in ATTENTION:
            raise ValueError(f"attention={self.attention!r} is not one of {', '.join(ATTENTION)}")
        if not self.separator:
            raise ValueError("step_separator='' would leave nothing between two steps")

    @classmethod
    def beside(cls, model: str) -> "Reader | None":
        """The reader of a model's directory or name on the hub; None where it is not one of ours."""
        from transformers.utils import cached_file

        file = cached_file(
            model, READER, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
        if file is None:
            return None
        try:
            return cls(**json.loads(Path(file).read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file} does not say how the model reads steps: {error}") from error

    def write(self, directory: Path) -> None:
        """Writes it beside a model's weights."""
        write_whole(directory / READER, to_json(asdict(self)))

    def encode(self, tokenizer: Any, prompt: Any, steps: Sequence[str]) -> "Encoded":
        """The tokens of a prompt (a text, or messages) with its steps; `ValueError` for a step without tokens."""
        ids = Chat(self.chat_template, self.system_prompt).encode(prompt, tokenizer)
        segments, positions = [0] * len(ids), []
        for number, step in enumerate(steps, start=1):
            new = tokenizer(step + self.separator, add_special_tokens=False)["input_ids"]
            if not new:
                raise ValueError(f"step {step!r} with step_separator={self.separator!r} has no token to be scored at")
            ids = ids + new
            segments += [number] * len(new)
            positions.append(len(ids) - 1)
        return Encoded(ids, segments, positions)


@dataclass(frozen=True)
class Encoded:
    """Token ids, the segment of each (0 for the prompt, then the steps from 1), and where each step is scored."""

    ids: list[int]
    segments: list[int]
    positions: list[int]


def room_of(model: PreTrainedModel) -> int | None:
    """The most tokens that the model was made to read, where its config says so."""
    return getattr(model.config, "max_position_embeddings", None)


def check_room(longest: int, model: PreTrainedModel) -> None:
    """Raises `ValueError` where a question with its steps has more tokens than the model was made to read."""
    room = room_of(model)
    if room is not None and longest > room:
        raise ValueError(
            f"a question with its steps has {longest} tokens, and the scorer's model reads {room} at most"
        )


def batch(rows: Sequence[Encoded], attention: str, dtype: torch.dtype, device: torch.device | str) -> dict[str, Any]:
    """The model's arguments for rows of different lengths, padded to the right: `input_ids` and `attention_mask`.

    The mask is `(B, L)` for causal models and additive, `(B, 1, L, L)` in the model's own type, for the others.
    """
    longest = max(len(row.ids) for row in rows)
    # Any token will do as padding: it stands where nothing looks.
    ids_BL = torch.tensor([row.ids + [row.ids[-1]] * (longest - len(row.ids)) for row in rows])
    real_BL = torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows])
    if attention == "causal":
        return {"input_ids": ids_BL.to(device), "attention_mask": real_BL.to(device)}
    segment_BL = torch.tensor([row.segments + [row.segments[-1]] * (longest - len(row.ids)) for row in rows])
    seen_BLL = real_BL.bool()[:, None, :].expand(-1, longest, -1)
    if attention == "steps":
        seen_BLL = seen_BLL & (segment_BL[:, None, :] <= segment_BL[:, :, None])
    mask_BLL = torch.zeros(seen_BLL.shape, dtype=dtype).masked_fill_(~seen_BLL, torch.finfo(dtype).min)
    return {"input_ids": ids_BL.to(device), "attention_mask": mask_BLL[:, None].to(device)}


def as_step_classifier(model: PreTrainedModel, attention: str, seed: int = 0) -> PreTrainedModel:
    """The body of a language model under a new head of two labels (wrong, right), without a copy of its weights.

    Raises `ValueError` for a class that has no token classifier in transformers, or one of another build.
    """
    classifier = _classifier(type(model).__name__, getattr(model, "config", None))
    config = classifier.config
    classifier.model = model.model
    head = nn.Linear(config.hidden_size, 2, bias=classifier.score.bias is not None)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(0.0, config.initializer_range, generator=generator)
        if head.bias is not None:
            head.bias.zero_()
    classifier.score = head.to(dtype=model.dtype, device=model.device)
    return attend(classifier, attention)


def _classifier(name: str, config: Any) -> Any:
    """The empty classifier of two labels of a language model of this class and config, on the meta device."""
    import transformers

    refused = ValueError(
        f"a {name} cannot be given a head that scores steps: transformers has no token classifier like it"
    )
    found = getattr(transformers, name.replace("ForCausalLM", "ForTokenClassification"), None)
    if found is None or not found.__name__.endswith("ForTokenClassification"):
        raise refused
    config = type(config).from_dict(config.to_dict())
    config.num_labels, config.id2label, config.label2id = 2, LABELS, {label: i for i, label in LABELS.items()}
    with torch.device("meta"):
        classifier = found(config)
    if not (hasattr(classifier, "model") and hasattr(classifier, "score")):
        raise refused
    return classifier


def check_takes_head(model: str, revision: str | None = None) -> None:
    """Raises `ValueError` where a language model cannot be given a head, by its config alone: `as_step_classifier` would."""
    from lockstitch.sampling.families import translation_of
    from lockstitch.sampling.loading import native_config, read_config
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    raw = read_config(model, revision)
    translation = translation_of(raw)
    if translation is not None:
        _classifier(translation.native, native_config(raw, translation))
        return
    with loaded_from(f"the config of {model!r}"):
        config = AutoConfig.from_pretrained(model, revision=revision)
    _classifier(NAMES.get(config.model_type, config.model_type), config)


def attend(model: PreTrainedModel, attention: str) -> PreTrainedModel:
    """The model, attending as its reader says."""
    return make_causal(model) if attention == "causal" else make_bidirectional(model)


def load_body(
    model: str, attention: str | None = None, family: str | None = None, **loading: Any
) -> tuple[PreTrainedModel, Any, str]:
    """A language model that can be given a head, its tokenizer, and how it is to be read.

    Args:
        model: a directory, a name on the hub or `embedded:NAME`: a diffusion model of a known family, or a causal one.
        attention: `causal`, `steps` or `full`; None is `steps` for diffusion models that attend fully, and `causal` for
            all others: block-causal and context-causal ones read what is written from the left.
        family: of a diffusion model, where its config does not say.
        loading: further arguments of loading (`dtype`, `device`, `revision`, `quantization_config`).

    Raises `ValueError` for what cannot be loaded, and for another attention than a model was trained with.
    """
    from lockstitch.sampling.loading import check_masks, load_model, load_tokenizer, read_config

    revision = loading.get("revision")
    attention = attention_of(model, attention, family, revision)
    body = load_model(model, read_config(model, revision), **loading)
    if attention != "causal":
        check_masks(body, f"attention={attention!r}")
    return body, load_tokenizer(model, revision), attention


def attention_of(
    model: str, attention: str | None = None, family: str | None = None, revision: str | None = None
) -> str:
    """How a language model under a head is to be read; arguments and errors are those of `load_body`. Loads no weights."""
    from lockstitch.sampling.families import FACTS, translation_of
    from lockstitch.sampling.loading import layout_of, read_config

    raw = read_config(model, revision)
    diffusion = family is not None or FACTS in raw or translation_of(raw) is not None or raw.get("is_causal") is False
    full = diffusion and layout_of(model, family, revision)[0].layout == "full"
    attention = attention or ("steps" if full else "causal")
    if attention != "causal" and not full:
        raise ValueError(f"attention={attention!r} needs a diffusion model that attends fully, and {model!r} does not")
    if attention == "causal" and full:
        raise ValueError(f"attention='causal' would hide from {model!r} what it was trained to see: steps, full")
    return attention


def load_classifier(
    model: str, reader: Reader, device: str | torch.device | None = None
) -> tuple[PreTrainedModel, Any]:
    """A trained classifier with its tokenizer, whole or an adapter of PEFT's beside its base's name; float32 on a CPU."""
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    device = usable_device(device)
    dtype: Any = torch.float32 if device.type == "cpu" else "auto"
    tokenizer = AutoTokenizer.from_pretrained(model)
    if (Path(model) / "adapter_config.json").is_file():
        from peft import PeftConfig, PeftModel

        config = PeftConfig.from_pretrained(model)
        loading = {"dtype": dtype, "device": device, "revision": config.revision}
        body, _, _ = load_body(str(config.base_model_name_or_path), reader.attention, reader.family, **loading)
        adapted: Any = PeftModel.from_pretrained(as_step_classifier(body, reader.attention), model)
        return adapted.merge_and_unload().eval(), tokenizer
    loaded: Any = AutoModelForTokenClassification.from_pretrained(model, dtype=dtype)
    return attend(loaded.to(device), reader.attention).eval(), tokenizer
