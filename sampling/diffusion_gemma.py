"""The face of DiffusionGemma: an encoder that reads, once, and a decoder that denoises a canvas against what was read.

The causal encoder writes keys and values of the prompt and of every accepted block into a cache; the bidirectional
decoder reads the cache and never writes it, so that any number of trajectories share one encoded prompt, exactly. There
is no mask token: a canvas starts from uniformly random tokens. From one denoising step to the next the decoder is handed
its last prediction as *soft embeddings*, the average of the token embeddings under the predicted distribution
(self-conditioning).

Follows `DiffusionGemmaForBlockDiffusion` of transformers, of which the encoder, the decoder and the head are called one by
one. Leaves out images, and the loop itself, which is `lockstitch.sampling.uniform`.

Axes: B rows, R rows chosen from them, L columns of the prefix, C canvas positions, D hidden size, V vocabulary.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lockstitch.sampling.loading import check_whole, loaded_from, padding_id, unreported, usable_device
from lockstitch.sampling.uniform_config import MODEL_TYPE
from transformers import AutoConfig, AutoTokenizer, DynamicCache, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer


@dataclass(frozen=True)
class Prefix:
    """What the encoder has read: rows of prompts and accepted blocks, padded on the left.

    Attributes:
        cache: keys and values of the columns, written by the encoder alone.
        attention_BL: bool, False on padding.
        lengths_B: real tokens of each row, which is the position of the token that comes next.
    """

    cache: DynamicCache
    attention_BL: torch.Tensor
    lengths_B: torch.Tensor

    def select(self, rows_R: torch.Tensor) -> "Prefix":
        """A prefix of these rows, any of them any number of times; this one stays as it is."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        cache.batch_select_indices(rows_R)  # gives the copied layers new tensors, in place of nothing
        return Prefix(cache, self.attention_BL[rows_R], self.lengths_B[rows_R])


class DiffusionGemmaDenoiser:
    """A DiffusionGemma, its tokenizer and the few ids that sampling needs.

    Args:
        model: a `DiffusionGemmaForBlockDiffusion`.
        tokenizer: its tokenizer.

    Raises `ValueError` for another model, and where no end-of-sequence token is named.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer) -> None:
        if model.config.model_type != MODEL_TYPE:
            raise ValueError(f"model type {model.config.model_type!r} is not {MODEL_TYPE!r}")
        self.model, self.tokenizer = model, tokenizer
        configured = [model.generation_config.eos_token_id, model.config.get_text_config().eos_token_id]
        ids = [tokenizer.eos_token_id]
        for eos in configured:
            ids += eos if isinstance(eos, list) else [eos]
        self.eos_ids: list[int] = list(dict.fromkeys(i for i in ids if i is not None))
        if not self.eos_ids:
            raise ValueError("neither the tokenizer nor the configs name an end-of-sequence token")
        self.vocabulary: int = model.config.get_text_config().vocab_size
        self.pad_id: int = padding_id(tokenizer, self.eos_ids, self.vocabulary)

    @classmethod
    def from_pretrained(
        cls, path: str, *, dtype: torch.dtype | str = "auto", device: str | torch.device | None = None
    ) -> "DiffusionGemmaDenoiser":
        """Loads a checkpoint, by default onto the accelerator if there is one.

        Raises `ValueError` in one line for another model type, for a device that this machine lacks, and for what does not
        load whole: files that are missing or broken, tensors that are missing, left over or of another shape.
        """
        with loaded_from(f"the config of {path!r}"):
            model_type = AutoConfig.from_pretrained(path).model_type
        if model_type != MODEL_TYPE:
            raise ValueError(f"{path!r} holds a model of type {model_type!r}, not {MODEL_TYPE!r}")
        from transformers import DiffusionGemmaForBlockDiffusion  # not in every transformers that the rest works with

        device = usable_device(device)
        loading: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
        with loaded_from(f"the weights of {path!r}"), unreported("LOAD REPORT"):
            model, info = DiffusionGemmaForBlockDiffusion.from_pretrained(path, **loading)
        check_whole(path, info)
        with loaded_from(f"the tokenizer of {path!r}"):
            tokenizer = AutoTokenizer.from_pretrained(path)
        return cls(model.to(device).eval(), tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def block_length(self) -> int:
        """Positions of a canvas as the model was trained: they are denoised together before the next ones."""
        length: int = self.model.config.canvas_length
        return length

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of plain-text prompts, without special tokens of the tokenizer's own."""
        return [self.tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Texts of token ids, special tokens left out."""
        return [self.tokenizer.decode(list(row), skip_special_tokens=True) for row in ids]

    def read(self, prompts: Sequence[Sequence[int]]) -> Prefix:
        """Encodes prompts (token ids, none of them empty), one row each: one forward pass of the encoder."""
        width = max(map(len, prompts))
        ids_BL = torch.tensor([[self.pad_id] * (width - len(ids)) + list(ids) for ids in prompts])
        attention_BL = torch.tensor([[False] * (width - len(ids)) + [True] * len(ids) for ids in prompts])
        cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        empty_B = torch.zeros(len(prompts), dtype=torch.long, device=self.device)
        nothing = Prefix(cache, torch.ones(len(prompts), 0, dtype=torch.bool, device=self.device), empty_B)
        return self._extend(nothing, ids_BL.to(self.device), attention_BL.to(self.device))

    def extend(self, prefix: Prefix, block_BC: torch.Tensor) -> Prefix:
        """Encodes a finished block behind each row: one forward pass of the encoder, which uses the old prefix up."""
        return self._extend(prefix, block_BC, torch.ones_like(block_BC, dtype=torch.bool))

    def _extend(self, prefix: Prefix, ids_BL: torch.Tensor, real_BL: torch.Tensor) -> Prefix:
        attention_BL = torch.cat([prefix.attention_BL, real_BL], dim=1)
        positions_BL = (prefix.lengths_B[:, None] + real_BL.cumsum(1) - 1).clamp(min=0)
        self.model.model.encoder(
            input_ids=ids_BL,
            attention_mask=attention_BL,
            position_ids=positions_BL,
            past_key_values=prefix.cache,
        )
        return Prefix(prefix.cache, attention_BL, prefix.lengths_B + real_BL.sum(1))

    def decoder_arguments(self, prefix: Prefix, length: int) -> dict[str, Any]:
        """What all denoising steps of one block share: cache, positions and attention mask for `length` positions."""
        canvas_BC = prefix.attention_BL.new_ones(len(prefix.attention_BL), length)
        masks = self.model.model.decoder.create_diffusion_decoder_attention_mask(
            config=self.model.config,
            inputs_embeds=canvas_BC[..., None].to(self.model.dtype),  # read for its shape, dtype and device
            past_key_values=prefix.cache,
            decoder_attention_mask=torch.cat([prefix.attention_BL, canvas_BC], dim=1),
        )
        position_C = torch.arange(length, device=self.device)
        return {
            "past_key_values": prefix.cache,
            "decoder_attention_mask": masks,
            "decoder_position_ids": prefix.lengths_B[:, None] + position_C,
        }

    def hidden(
        self, canvas_BC: torch.Tensor, soft_BCD: torch.Tensor | None, arguments: dict[str, Any]
    ) -> torch.Tensor:
        """The decoder's last hidden states `(B, C, D)`: one forward pass.

        Args:
            canvas_BC: the tokens of the canvas, noise included.
            soft_BCD: what `soft_embeddings` gave after the step before; None at a block's first step.
            arguments: of `decoder_arguments`.
        """
        decoder = self.model.model.decoder
        with _self_conditioned(decoder.self_conditioning, soft_BCD):
            hidden_BCD: torch.Tensor = decoder(decoder_input_ids=canvas_BC, **arguments).last_hidden_state
        return hidden_BCD

    def scaled_logits(self, hidden_BCD: torch.Tensor, temperature: float) -> torch.Tensor:
        """Soft-capped logits divided by a temperature, float32 `(B, C, V)`, fresh memory that the caller may write to."""
        cap: float = self.model.final_logit_softcapping
        logits_BCV: torch.Tensor = self.model.lm_head(hidden_BCD).float()
        return logits_BCV.div_(cap).tanh_().mul_(cap / temperature)

    def soft_embeddings(self, p_BCV: torch.Tensor) -> torch.Tensor:
        """The average embedding `(B, C, D)` of each position under its distribution.

        The decoder would form it from logits by a softmax of its own; handed over ready-made, the distribution that
        sampling needs anyway serves twice, and logits need not be kept. Below float32 the decoder rounds the logits
        before that softmax, and here the probabilities are rounded after it.
        """
        embedding = self.model.model.decoder.embed_tokens
        weight_VD: torch.Tensor = embedding.weight
        scale: torch.Tensor = embedding.embed_scale
        return (p_BCV.to(weight_VD.dtype) @ weight_VD) * scale.to(weight_VD.dtype)


@contextmanager
def _self_conditioned(module: torch.nn.Module, soft_BCD: torch.Tensor | None) -> Iterator[None]:
    """Puts ready-made soft embeddings in the place of the zeros that the decoder passes where it is given no logits."""
    if soft_BCD is None:
        yield
        return
    handle = module.register_forward_pre_hook(lambda _, arguments: (arguments[0], soft_BCD))
    try:
        yield
    finally:
        handle.remove()
