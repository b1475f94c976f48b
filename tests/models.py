"""Tiny random models of the families that the tests exercise."""

from types import SimpleNamespace

import torch
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.diffusion_gemma import DiffusionGemmaDenoiser
from lockstitch.sampling.families import BIDIRECTIONAL, DREAM, Family
from lockstitch.sampling.remote import Calling
from transformers import (
    AutoTokenizer,
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lockstitch import embedded_model

_SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "head_dim": 8}  # fmt: skip
_CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def tokenizer():
    """The embedded tokenizer."""
    return AutoTokenizer.from_pretrained(embedded_model("sudoku"))


def random_denoiser(
    kind: str = "llama", seed: int = 0, sharpness: float = 5.0, family: Family = BIDIRECTIONAL
) -> Denoiser:
    """A random model of a family; `sharpness` scales the head so that confidences spread over (0, 1)."""
    tok = tokenizer()
    config_class, model_class = _CLASSES[kind]
    shape = dict(_SHAPE)
    if kind == "qwen2":
        del shape["head_dim"]
    config = config_class(
        vocab_size=len(tok),
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
        bos_token_id=None,
        initializer_range=0.25,
        **shape,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config).eval()
        torch.nn.init.normal_(model.lm_head.weight, std=sharpness / 32**0.5)
    return Denoiser(model, tok, family)


WITHOUT_MASK = Calling(honours_mask=False, keeps_columns=False, keeps_keys=False)


class WithoutMask(torch.nn.Module):
    """Code that ignores what it is not made for, over any model: no attention mask, no positions, no choice of columns."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.config, self.generation_config = model, model.config, model.generation_config

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.model(input_ids=input_ids).logits)


def without_mask(denoiser: Denoiser) -> Denoiser:
    """The same weights behind such code."""
    return Denoiser(WithoutMask(denoiser.model), denoiser.tokenizer, denoiser.family, calling=WITHOUT_MASK)


class Shifted(torch.nn.Module):
    """Dream's convention over a Llama: what the head reads at i, and so the logits, predict the token at i + 1."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.config, self.generation_config = model, model.config, model.generation_config

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        hidden = self.model.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)[0]
        return SimpleNamespace(logits=self.model.lm_head(hidden.roll(-1, dims=1)))


def dream_like(denoiser: Denoiser) -> Denoiser:
    """The same weights behind Dream's convention."""
    calling = Calling(keeps_columns=False, keeps_keys=False)
    return Denoiser(Shifted(denoiser.model), denoiser.tokenizer, DREAM, calling=calling)


def random_diffusion_gemma(
    seed: int = 0, sharpness: float = 4.0, gain: float = 0.5, echo: float = 0.3, **shape
) -> DiffusionGemmaDenoiser:
    """A random DiffusionGemma over the embedded tokenizer: blocks of 8, a window of 8 tokens in one layer, four experts.

    `sharpness` scales the tied embeddings, so that confidences spread over (0, 1); `gain` what the layers add to them, and
    `echo` the self-conditioning. With these defaults each block settles after another number of steps; with larger ones
    it hardly does, and rounding grows from step to step until it decides tokens. `shape` overrides the text config.
    """
    tok = tokenizer()
    text = {
        "vocab_size": len(tok),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "global_head_dim": 16,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "sliding_window": 8,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.pad_token_id,
        "bos_token_id": None,
    } | shape
    vision = {"model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 16}  # fmt: skip
    config = DiffusionGemmaConfig(text_config=text, vision_config=vision, canvas_length=8, initializer_range=0.25)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DiffusionGemmaForBlockDiffusion(config).eval()
        torch.nn.init.normal_(model.lm_head.weight, std=sharpness / text["hidden_size"] ** 0.5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
                weight *= gain
        model.model.decoder.self_conditioning.down_proj.weight *= echo
    return DiffusionGemmaDenoiser(model, tok)
