"""The face of a diffusion language model: one way to ask any family for the logits of a canvas.

A family is a layout with a calling convention. Those that run code of their checkpoint (`llada`, `dream`, `llada2`) were
exercised on stand-ins with the same convention, not on their weights. Leaves out uniform noise.

Axes: B rows, L positions, C columns, M places (a row and a column), V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer


@dataclass(frozen=True)
class Family:
    """How a model family is called.

    Attributes:
        name: what `--family` calls it.
        honours_mask: whether an attention mask hides padding; if not, rows of one length are batched together.
        shifted: whether the logits at i predict the token at i + 1.
        keeps_columns: whether the head can be asked for some columns alone (`logits_to_keep`).
        layout: `full` (every position sees every other), `block_causal` (its own block and the ones before) or
            `context_causal` (a causal prefix, and a block that sees itself and the prefix).
        keeps_keys: whether it takes a transformers `Cache`, so that keys and values can be kept between steps.
    """

    name: str
    honours_mask: bool
    shifted: bool
    keeps_columns: bool
    layout: str = "full"
    keeps_keys: bool = False


BIDIRECTIONAL = Family("bidirectional", honours_mask=True, shifted=False, keeps_columns=True, keeps_keys=True)
LLADA = Family("llada", honours_mask=False, shifted=False, keeps_columns=False)
DREAM = Family("dream", honours_mask=True, shifted=True, keeps_columns=False)
BLOCK_CAUSAL = Family("block_causal", honours_mask=True, shifted=False, keeps_columns=True, layout="block_causal",
                      keeps_keys=True)  # fmt: skip
BLOCK_CAUSAL_SHIFTED = Family("block_causal_shifted", honours_mask=True, shifted=True, keeps_columns=True,
                              layout="block_causal", keeps_keys=True)  # fmt: skip
LLADA2 = Family("llada2", honours_mask=True, shifted=False, keeps_columns=False, layout="block_causal", keeps_keys=True)
CONTEXT_CAUSAL = Family("context_causal", honours_mask=True, shifted=True, keeps_columns=True, layout="context_causal",
                        keeps_keys=True)  # fmt: skip
FAMILIES = {family.name: family for family in (BIDIRECTIONAL, LLADA, DREAM, BLOCK_CAUSAL, BLOCK_CAUSAL_SHIFTED, LLADA2,
                                               CONTEXT_CAUSAL)}  # fmt: skip
_BY_MODEL_TYPE = {"llama": BIDIRECTIONAL, "qwen2": BIDIRECTIONAL, "qwen3": BIDIRECTIONAL, "llada": LLADA,
                  "Dream": DREAM, "sdar": BLOCK_CAUSAL, "Fast_dLLM_Qwen": BLOCK_CAUSAL_SHIFTED,
                  "llada2_moe": LLADA2}  # fmt: skip


def family_of(model_type: str) -> Family:
    """The family of a transformers `model_type`; `ValueError` names the known ones."""
    if model_type not in _BY_MODEL_TYPE:
        known = ", ".join(sorted(_BY_MODEL_TYPE))
        raise ValueError(f"model type {model_type!r} is of no known diffusion family (known types: {known}); "
                         f"say which calling convention it follows with family={'|'.join(FAMILIES)}")
    return _BY_MODEL_TYPE[model_type]


def _set_causal(model: PreTrainedModel, causal: bool) -> PreTrainedModel:
    model.config.is_causal = causal
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = causal
    return model


def make_bidirectional(model: PreTrainedModel) -> PreTrainedModel:
    """Lets every position of a Llama, Qwen2 or Qwen3 model attend to every other; saved with its config."""
    return _set_causal(model, False)


def make_causal(model: PreTrainedModel) -> PreTrainedModel:
    """Undoes `make_bidirectional`: every position attends to those before it."""
    return _set_causal(model, True)


def load_model(
    path: str,
    config: Any,
    trust_remote_code: bool = False,
    *,
    dtype: torch.dtype | str = "auto",
    device: str | torch.device | None = None,
    **loading: Any,
) -> PreTrainedModel:
    """A checkpoint's model as its config says, in evaluation mode; `device` is by default the accelerator, if any."""
    if device is None:
        device = torch.accelerator.current_accelerator() or "cpu"
    auto_map = getattr(config, "auto_map", None) or {}
    loader: Any = AutoModel if "AutoModelForCausalLM" not in auto_map and auto_map else AutoModelForCausalLM
    if loading.get("quantization_config") is not None:  # its weights cannot be moved afterwards
        loading["device_map"] = {"": device}
    model = loader.from_pretrained(path, dtype=dtype, trust_remote_code=trust_remote_code, **loading)
    return (model if "device_map" in loading else model.to(device)).eval()


class Denoiser:
    """A model, its tokenizer and the few ids that denoising needs.

    Args:
        model: any module whose `model(input_ids=, attention_mask=, position_ids=).logits` is `(B, L, V)`.
        tokenizer: its tokenizer; must know a mask token unless `mask_id` says it.
        family: the calling convention.
        mask_id: the mask token, by default the tokenizer's, else the config's `mask_token_id`.

    Raises `ValueError` where a mask or an end-of-sequence token is missing.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        family: Family = BIDIRECTIONAL,
        mask_id: int | None = None,
    ) -> None:
        self.model, self.tokenizer, self.family = model, tokenizer, family
        if mask_id is None:
            mask_id = tokenizer.mask_token_id
        if mask_id is None:
            mask_id = getattr(model.config, "mask_token_id", None)
        if mask_id is None:
            raise ValueError("neither the tokenizer nor the config names a mask token; pass mask_id")
        self.mask_id: int = mask_id
        configured = model.generation_config.eos_token_id if model.generation_config is not None else None
        ids = [tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
        self.eos_ids: list[int] = list(dict.fromkeys(i for i in ids if i is not None))
        if not self.eos_ids:
            raise ValueError("neither the tokenizer nor the generation config names an end-of-sequence token")
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos_ids[0]

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        family: str | None = None,
        mask_id: int | None = None,
        trust_remote_code: bool = False,
        dtype: torch.dtype | str = "auto",
        device: str | torch.device | None = None,
        revision: str | None = None,
        **loading: Any,
    ) -> "Denoiser":
        """Loads a checkpoint and recognises its family from the config (`family` overrides).

        `device` is by default the accelerator, if there is one. Remote code runs only if `trust_remote_code` is said.
        `loading` goes to the model's own `from_pretrained` (`attn_implementation`, `quantization_config`). Raises
        `ValueError` for an unknown family.
        """
        if family is not None and family not in FAMILIES:
            raise ValueError(f"family={family!r} is not one of {', '.join(FAMILIES)}")
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, revision=revision)
        known = FAMILIES[family] if family else family_of(config.model_type)
        model = load_model(path, config, trust_remote_code, dtype=dtype, device=device, revision=revision, **loading)
        if known is BIDIRECTIONAL:
            make_bidirectional(model)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, revision=revision)
        return cls(model, tokenizer, known, mask_id)

    @property
    def never_drawn(self) -> list[int]:
        """Ids that no completion holds: the mask token, and padding where it is no end-of-sequence token."""
        return [self.mask_id, *({self.pad_id} - {self.mask_id, *self.eos_ids})]

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of plain-text prompts, without special tokens of the tokenizer's own."""
        return [self.tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Texts of token ids, special tokens left out."""
        return [self.tokenizer.decode(list(row), skip_special_tokens=True) for row in ids]

    def forward_logits(
        self,
        model: torch.nn.Module,
        input_ids_BL: torch.Tensor,
        attention_mask_BL: torch.Tensor,
        columns: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits in which position i predicts token i, `(B, L, V)`, or `(B, C, V)` of the given columns alone.

        For the full layout: a whole pass in which every position sees every other. `model` is `self.model` or a wrapper
        of it (DDP, PEFT). Padding may be on either side: positions count from each row's first real token. Raises
        `ValueError` for padded rows where the family ignores attention masks, and for other layouts.
        """
        if self.family.layout != "full":
            raise ValueError(f"{self.family.name} models do not attend fully: their passes depend on the block")
        arguments: dict[str, Any] = {"input_ids": input_ids_BL}
        if not bool(attention_mask_BL.all()):
            if not self.family.honours_mask:
                raise ValueError(f"{self.family.name} models ignore attention masks: batch rows of one length only")
            arguments["attention_mask"] = attention_mask_BL
            arguments["position_ids"] = (attention_mask_BL.cumsum(1) - 1).clamp(min=0)
        if self.family.shifted:
            # The token at i is predicted at i - 1; nothing predicts the first one, whose own logits stand in.
            if columns is None:
                columns = torch.arange(input_ids_BL.shape[1], device=input_ids_BL.device)
            columns = (columns - 1).clamp(min=0)
        return self.raw_logits(model, arguments, columns)

    def raw_logits(
        self,
        model: torch.nn.Module,
        arguments: dict[str, Any],
        columns: torch.Tensor | None,
        asked_BC: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What `model(**arguments)` says in the given columns of its input, unshifted: `(B, C, V)`.

        With `asked_BC` only where it is True, `(M, V)`: what other rows are asked for costs a row nothing.
        """
        if self.family.keeps_keys and "past_key_values" not in arguments:
            arguments = {**arguments, "use_cache": False}  # or the pass copies every key into a cache that nobody reads
        if not self.family.keeps_columns:
            logits: torch.Tensor = model(**arguments).logits
            logits = logits if columns is None else logits[:, columns]
            return logits if asked_BC is None else logits[asked_BC]
        if columns is not None:
            arguments = {**arguments, "logits_to_keep": columns}
        if asked_BC is None or bool(asked_BC.all()):
            logits = model(**arguments).logits
            return logits if asked_BC is None else logits.flatten(0, 1)
        with _reads(self.model.get_output_embeddings(), asked_BC):
            logits = model(**arguments).logits
        return logits


@contextmanager
def _reads(head: torch.nn.Module, asked_BC: torch.Tensor) -> Iterator[None]:
    """Gives the head the asked places alone: a model can be asked for columns, but not for some of each row."""
    handle = head.register_forward_pre_hook(lambda _, arguments: (arguments[0][asked_BC],))
    try:
        yield
    finally:
        handle.remove()
