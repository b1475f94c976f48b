"""The face of a diffusion language model: one way to ask any family for the logits of a canvas.

A family is a layout with its conventions (`families.py`); its models are transformers' own classes (`loading.py`), or run
the code of an unknown checkpoint as far as that does what is asked of it (`remote.py`). Leaves out uniform noise.

Axes: B rows, L positions, C columns, M places (a row and a column), V vocabulary.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from lockstitch.sampling.adapter_files import Adapter, find_adapter
from lockstitch.sampling.blanks import given
from lockstitch.sampling.chat import Chat
from lockstitch.sampling.compiled import compile_layers
from lockstitch.sampling.families import BIDIRECTIONAL, FACTS, Family, family_of
from lockstitch.sampling.loading import (
    check_masks,
    is_remote,
    layout_of,
    load_model,
    load_tokenizer,
    padding_id,
    reads_masks,
    write_facts,
)
from lockstitch.sampling.remote import NATIVE, Calling, load_remote
from peft import PeftModel
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

logger = logging.getLogger(__name__)

_NO_MASKS = (
    "{} models start from uniformly random tokens, not from masks: `lockstitch sample` and DiffusionGemmaDenoiser sample "
    "from them, and nothing else takes them"
)


def _set_causal(model: PreTrainedModel, causal: bool) -> PreTrainedModel:
    model.config.is_causal = causal
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = causal
    return model


def make_bidirectional(model: PreTrainedModel) -> PreTrainedModel:
    """Lets every position of one of transformers' causal models attend to every other; saved with its config."""
    return _set_causal(model, False)


def make_causal(model: PreTrainedModel) -> PreTrainedModel:
    """Undoes `make_bidirectional`: every position attends to those before it."""
    return _set_causal(model, True)


def check_loadable(path: str, family: Family, raw: Mapping[str, Any], trust_remote_code: bool) -> bool:
    """Whether a checkpoint with this config.json runs code of its own, which must be allowed where, and only where, it does.

    Raises `ValueError` otherwise, and for families without mask tokens.
    """
    if family.layout == "encoder_decoder":
        raise ValueError(_NO_MASKS.format(family.name))
    remote = is_remote(raw)
    if trust_remote_code and not remote:
        raise ValueError(
            f"trust_remote_code=True would be ignored: {path!r} is of type {raw['model_type']!r}, which runs on "
            "transformers' own classes"
        )
    if remote and not trust_remote_code:
        raise ValueError(
            f"{path!r} is of type {raw['model_type']!r}, which transformers does not have: it runs code of its own, "
            "which trust_remote_code allows"
        )
    return remote


class Denoiser:
    """A model, its tokenizer and the few ids that denoising needs.

    Args:
        model: any module whose `model(input_ids=, attention_mask=, position_ids=).logits` is `(B, L, V)`. Its config is
            given the facts that saving it keeps: family, layout, shift, block length, mask token.
        tokenizer: its tokenizer; must know a mask token unless `mask_id` says it.
        family: how it attends and predicts.
        mask_id: the mask token, by default the one that the config's facts, the tokenizer or the config name.
        calling: what can be asked of the model; everything, unless it runs code that is not transformers'.

    Attributes:
        chat: how texts are put to the model; as they are, unless it is set.
        compiled: whether its layers are (`compile_layers`).

    Raises `ValueError` where a mask or an end-of-sequence token is missing, where tokenizer and config name different mask
    tokens, for families without mask tokens, and for attention (flash) that does not read masks which a family needs; where
    it needs none, such a model has no cache.
    """

    compiled = False

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        family: Family = BIDIRECTIONAL,
        mask_id: int | None = None,
        calling: Calling = NATIVE,
    ) -> None:
        if family.layout == "encoder_decoder":
            raise ValueError(_NO_MASKS.format(family.name))
        if not calling.own_code and not reads_masks(model):
            if family.layout != "full":
                check_masks(model, f"a {family.name} model")
            calling = replace(calling, keeps_keys=False)
        self.model, self.tokenizer, self.family, self.calling = model, tokenizer, family, calling
        self.chat = Chat()
        self.mask_id: int = _mask_id(model, tokenizer, family) if mask_id is None else mask_id
        vocabulary = model.config.get_text_config().vocab_size
        if not 0 <= self.mask_id < vocabulary:
            raise ValueError(f"mask_id={self.mask_id} is no token of the model, which has {vocabulary}")
        configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        ids = [tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
        ids += [i for i in family.eos_ids if _is_special(tokenizer, i)]
        self.eos_ids: list[int] = list(dict.fromkeys(i for i in ids if i is not None))
        if not self.eos_ids:
            raise ValueError("neither the tokenizer nor the generation config names an end-of-sequence token")
        if self.mask_id in self.eos_ids:
            token = tokenizer.convert_ids_to_tokens(self.mask_id)
            raise ValueError(f"mask_id={self.mask_id} is {token!r}, which ends a text and cannot mask one")
        self.pad_id: int = padding_id(tokenizer, self.eos_ids, vocabulary)
        if family.layout == "full" and not calling.own_code:
            make_bidirectional(model)
        write_facts(model, family, self.mask_id)

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
        """Loads a checkpoint of any known family: a directory, a name on the hub, or `embedded:NAME`; or an adapter's.

        The family is read from the config (`family` overrides); the model is one of transformers' own classes, and none of
        the checkpoint's code runs. An unknown model type needs `family` and `trust_remote_code`: its code is then tried on a
        few tokens, and what it cannot do is warned of and not asked of it. `device` is by default the accelerator, if there
        is one. `loading` goes to the model's own `from_pretrained` (`attn_implementation`, `quantization_config`). Raises
        `ValueError` in one line for an unknown family, for what is missing or does not fit, and for `trust_remote_code`
        where there is nothing to trust.

        An adapter (PEFT's: a directory with `adapter_config.json`, such as a run with `use_peft` leaves) is put on the base
        that it names, unmerged; `model` is then a `PeftModel`. `revision` is the adapter's own.
        """
        adapter = find_adapter(path, revision)
        if adapter is not None:
            from lockstitch.sampling.adapters import adapted, to_train_from

            facts = adapter.facts or {}
            mask_id = facts.get("mask_token_id") if mask_id is None else mask_id
            told = {
                "family": family or facts.get("family"),
                "mask_id": mask_id,
                "trust_remote_code": trust_remote_code,
            }
            base = _base_of(cls, adapter, {**told, "dtype": dtype, "device": device, **loading})
            tokenizer = load_tokenizer(path, revision, trust_remote_code) if adapter.has_tokenizer else base.tokenizer
            if not facts or family not in (None, facts["family"]):
                denoiser = cls(base.model, tokenizer, base.family, mask_id, base.calling)
            else:
                denoiser = base.read_as(family_of({FACTS: facts}), mask_id, tokenizer)
            denoiser.model = adapted(to_train_from(base.model, adapter.base), adapter)
            return denoiser
        known, raw = layout_of(path, family, revision)
        if not check_loadable(path, known, raw, trust_remote_code):
            tokenizer = load_tokenizer(path, revision)
            model = load_model(path, raw, dtype=dtype, device=device, revision=revision, **loading)
            return cls(model, tokenizer, known, mask_id)
        model, calling = load_remote(path, known, dtype=dtype, device=device, revision=revision, **loading)
        for what in calling.lacking:
            logger.warning("%s: %s", path, what)
        return cls(model, load_tokenizer(path, revision, trust_remote_code=True), known, mask_id, calling)

    def without_graph(self) -> AbstractContextManager[object]:
        """A block whose passes keep no graph: inference mode, but under FSDP, which keeps what it gathers for training."""
        sharded = any(isinstance(module, FSDPModule) for module in self.model.modules())
        return torch.no_grad() if sharded else torch.inference_mode()

    def read_as(self, family: Family, mask_id: int | None, tokenizer: Tokenizer | None = None) -> "Denoiser":
        """The same model, attending and masking as an adapter says that it was trained to; its config says so, too."""
        if family.layout != "full" and not self.calling.own_code:
            make_causal(self.model)  # as the run that trained it did
        return type(self)(self.model, tokenizer or self.tokenizer, family, mask_id, self.calling)

    def compile_layers(self) -> None:
        """Has torch.compile make code of the model's layers, at the first pass: for `sample` without a cache.

        Logits change by rounding. Raises `ValueError` in one line where a compiler is missing (C++ on a CPU, triton
        elsewhere), and for models that bring their own code or an adapter.
        """
        if self.calling.own_code:
            raise ValueError(f"{type(self.model).__name__} cannot be compiled: it runs code of its own")
        if isinstance(self.model, PeftModel):
            raise ValueError(
                "a model with an adapter cannot be compiled: merge the adapter (`lockstitch export`) first"
            )
        compile_layers(self.model)
        self.compiled = True

    @property
    def block_length(self) -> int | None:
        """Positions of a block where blocks are part of the model, else None."""
        return self.family.block_length

    @property
    def longest(self) -> int | None:
        """Most positions that the model was made for, prompt and canvas together; None if its config does not say."""
        longest: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return longest

    @property
    def never_drawn(self) -> list[int]:
        """Ids that no completion holds: the mask token, and padding where it is no end-of-sequence token."""
        return [self.mask_id, *({self.pad_id} - {self.mask_id, *self.eos_ids})]

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts as they are, without special tokens of the tokenizer's own."""
        return [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts as `chat` says: as they are, unless it is set."""
        return [self.chat.encode(prompt, self.tokenizer) for prompt in prompts]

    def given(self, prompt: object) -> tuple[int | None, ...] | None:
        """Token ids of what a prompt knows of its completion, None where it is open; None if it knows nothing."""
        return given(prompt, lambda text: self.encode([text])[0])

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
            if not self.calling.honours_mask:
                raise ValueError("this model's own code ignores attention masks: batch rows of one length only")
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
        place_M: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What `model(**arguments)` says in the given columns of its input, unshifted: `(B, C, V)`.

        With `place_M`, indices into `B * C`, at these places alone, `(M, V)`: what other rows are asked for costs a row
        nothing.
        """
        if (self.calling.keeps_keys or not self.calling.own_code) and "past_key_values" not in arguments:
            arguments = {
                **arguments,
                "use_cache": False,
            }  # or the pass copies every key into a cache that nobody reads
        if not self.calling.keeps_columns:
            logits: torch.Tensor = model(**arguments).logits
            logits = logits if columns is None else logits[:, columns]
            return logits if place_M is None else logits.flatten(0, 1)[place_M]
        if columns is not None:
            arguments = {**arguments, "logits_to_keep": columns}
        if place_M is None:
            logits = model(**arguments).logits
            return logits
        with _reads(self.model.get_output_embeddings(), place_M):
            logits = model(**arguments).logits
        return logits


def _base_of(cls: type[Denoiser], adapter: Adapter, loading: dict[str, Any]) -> Denoiser:
    try:
        return cls.from_pretrained(adapter.base, revision=adapter.base_revision, **loading)
    except ValueError as error:
        raise ValueError(f"the base of the adapter {adapter.path!r} cannot be loaded: {error}") from error


@contextmanager
def _reads(head: torch.nn.Module, place_M: torch.Tensor) -> Iterator[None]:
    """Gives the head the asked places alone: a model can be asked for columns, but not for some of each row."""
    handle = head.register_forward_pre_hook(lambda _, arguments: (arguments[0].flatten(0, 1)[place_M],))
    try:
        yield
    finally:
        handle.remove()


def _is_special(tokenizer: Tokenizer, token: int) -> bool:
    """Whether an id of the published checkpoints is a special token of this tokenizer too."""
    return token in tokenizer.added_tokens_decoder and tokenizer.added_tokens_decoder[token].special


def _mask_id(model: PreTrainedModel, tokenizer: Tokenizer, family: Family) -> int:
    """The mask token that a checkpoint names; `ValueError` where it names none, or two."""
    facts = getattr(model.config, FACTS, None) or {}
    if facts.get("mask_token_id") is not None:
        said: int = facts["mask_token_id"]
        return said
    named = {"the tokenizer": tokenizer.mask_token_id, "config.json": getattr(model.config, "mask_token_id", None)}
    found = {where: token for where, token in named.items() if token is not None}
    if len(set(found.values())) > 1:
        raise ValueError(
            f"the tokenizer says that the mask token is {found['the tokenizer']}, config.json says "
            f"{found['config.json']}: pass mask_id"
        )
    for token in found.values():
        return int(token)
    if family.mask_id is not None and _is_special(tokenizer, family.mask_id):
        token = tokenizer.convert_ids_to_tokens(family.mask_id)
        if "mask" in token.lower():
            return family.mask_id
    raise ValueError("neither the tokenizer nor the config names a mask token; pass mask_id")
