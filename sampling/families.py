"""The families of diffusion language models, one row each: how a published checkpoint becomes a model of transformers' own.

Every published mask-noise architecture is a class that transformers has, under other names. A row says which class, how
config and tensors are called on either side, how the model attends and predicts, and how its authors decode. Checkpoints
are translated while they are read (`loading.py`), so none of their own code runs; compared with that code in
`tests/test_families.py`. To add a family, add a row. Leaves out what runs remote code (`remote.py`).

Tensor names are transformers' patterns: `(\\d+)` stands for a number, which `\\1` repeats; they are read in both directions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

# Keys of a published config that are about its files or its code, not about the model.
_OF_FILES = (
    "architectures",
    "auto_map",
    "model_type",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "_name_or_path",
    "use_cache",
    "diffusion",
)
FACTS = "diffusion"  # the key of config.json under which Lockstitch keeps what a family is


@dataclass(frozen=True)
class Translation:
    """How the checkpoints of a family are called, and how transformers calls the same.

    Attributes:
        native: transformers' class.
        model_types: what `model_type` in a published config.json says.
        architectures: what tells apart families of one model type; empty where the type is enough.
        config: published keys and their native names; keys with the same name on both sides are not listed.
        derived: native values that take more than a name, from the published config.
        needs: published keys with the values that the native class can do; a key that is missing counts as the first.
        names: published tensor names and their native patterns, where they differ.
        fused: tensors that are several native ones below one another, in that order.
        tokenizer: transformers' class for tokenizers that published checkpoints bring code for.
    """

    native: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...] = ()
    config: Mapping[str, str] = field(default_factory=dict)
    derived: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda raw: {}
    needs: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    names: tuple[tuple[str, str], ...] = ()
    fused: tuple[tuple[str, tuple[str, ...]], ...] = ()
    tokenizer: str | None = None


@dataclass(frozen=True)
class Family:
    """How a kind of model attends, predicts and is decoded.

    Attributes:
        name: what `--family` calls it.
        layout: `full` (every position sees every other), `block_causal` (its own block and the ones before),
            `context_causal` (a causal prefix, and a block that sees itself and the prefix), `causal` (every position sees
            those before it, masked or not) or `encoder_decoder` (DiffusionGemma).
        shifted: whether the logits at i predict the token at i + 1.
        opens_blocks: whether a block's first token is taken from the pass over what is written, before the others.
        block_length: positions of a block, where blocks are part of the model; None where they are the sampler's choice.
        block_key: the key of config.json that says so for a checkpoint.
        decoding: the preset that decodes as its authors do.
        mask_id: the published checkpoints' mask token, for those whose tokenizer and config do not name it.
        eos_ids: the published checkpoints' ends of a completion, beside those that tokenizer and config name.
        translation: how published checkpoints are read; None where they are of transformers' own classes already.
    """

    name: str
    layout: str = "full"
    shifted: bool = False
    opens_blocks: bool = False
    block_length: int | None = None
    block_key: str | None = None
    decoding: str | None = None
    mask_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    translation: Translation | None = None


def _same(native: str, *model_types: str, **more: Any) -> Translation:
    """A family whose checkpoints have transformers' names already."""
    return Translation(native, model_types, **more)


_OLMO, _LAYER = r"model.transformer.blocks.(\d+).", r"model.layers.\1."
_LLADA = Translation(
    "LlamaForCausalLM",
    ("llada",),
    config={
        "d_model": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "max_sequence_length": "max_position_embeddings",
        "weight_tying": "tie_word_embeddings",
    },
    derived=lambda raw: {
        "num_key_value_heads": raw.get("n_kv_heads") or raw["n_heads"],
        "intermediate_size": raw.get("mlp_hidden_size") or raw["mlp_ratio"] * raw["d_model"],
        "vocab_size": raw.get("embedding_size") or raw["vocab_size"],  # of the tensors, which are padded
    },
    needs={
        "block_type": ("llama",),
        "layer_norm_type": ("rms",),
        "activation_type": ("silu", "swiglu"),
        "rope": (True,),
        "rope_full_precision": (True,),
        "layer_norm_with_affine": (True,),
        "alibi": (False,),
        "attention_layer_norm": (False,),
        "input_emb_norm": (False,),
        "scale_logits": (False,),
        "include_bias": (False,),
        "include_qkv_bias": (False, None),
        "bias_for_layer_norm": (False, None),
        "multi_query_attention": (None, False),
        "block_group_size": (1,),
        "clip_qkv": (None,),
        "rope_scaling": (None,),
    },
    names=(
        ("model.transformer.wte", "model.embed_tokens"),
        ("model.transformer.ln_f", "model.norm"),
        ("model.transformer.ff_out", "lm_head"),
        (_OLMO + "q_proj", _LAYER + "self_attn.q_proj"),
        (_OLMO + "k_proj", _LAYER + "self_attn.k_proj"),
        (_OLMO + "v_proj", _LAYER + "self_attn.v_proj"),
        (_OLMO + "attn_out", _LAYER + "self_attn.o_proj"),
        (_OLMO + "attn_norm", _LAYER + "input_layernorm"),
        (_OLMO + "ff_norm", _LAYER + "post_attention_layernorm"),
        (_OLMO + "ff_proj", _LAYER + "mlp.gate_proj"),
        (_OLMO + "up_proj", _LAYER + "mlp.up_proj"),
        (_OLMO + "ff_out", _LAYER + "mlp.down_proj"),
    ),
)
_LLADA_MOE = Translation(
    "Qwen3MoeForCausalLM",
    ("lladamoe", "llada_moe", "llada"),
    ("LLaDAMoEModelLM", "LLaDAMoEModel"),
    config={"expert_intermediate_size": "moe_intermediate_size", "dense_intermediate_size": "intermediate_size"},
    derived=lambda raw: {
        "head_dim": raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
        "norm_topk_prob": bool(raw.get("norm_topk_prob")),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    needs={
        "qk_layernorm": (True,),
        "shared_expert_intermediate_size": (None, 0),
        "partial_rotary_factor": (1.0, None),
        "routed_scaling_factor": (1, 1.0, None),
        "router_num_group": (None, 0, 1),
        "router_topk_group": (None, 0, 1),
        "attention_bias": (False,),
        "moe_layer_freq": (None, 1, "every layer"),
        "use_sliding_window": (False, None),
    },
)
_LLADA2 = Translation(
    "Glm4MoeForCausalLM",
    ("llada2_moe",),
    config={"num_experts": "n_routed_experts", "num_shared_experts": "n_shared_experts"},
    derived=lambda raw: {
        "head_dim": raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": raw["rope_theta"],
            "partial_rotary_factor": raw.get("partial_rotary_factor", 1.0),
        },
        "num_nextn_predict_layers": 0,
        "attention_bias": False,
    },
    needs={
        "use_qk_norm": (True,),
        "use_bias": (False,),
        "use_qkv_bias": (False,),
        "use_rmsnorm": (True,),
        "score_function": ("sigmoid",),
        "moe_router_enable_expert_bias": (True,),
        "norm_head": (False, None),
        "norm_softmax": (False, None),
        "use_sliding_window": (False, None),
        "rope_scaling": (None,),
        "embedding_dropout": (0.0, None),
        "output_dropout": (0.0, None),
    },
    names=(
        ("model.word_embeddings", "model.embed_tokens"),
        ("attention.dense", "self_attn.o_proj"),
        ("attention.query_layernorm", "self_attn.q_norm"),
        ("attention.key_layernorm", "self_attn.k_norm"),
        ("mlp.gate.expert_bias", "mlp.gate.e_score_correction_bias"),
    ),
    fused=(("attention.query_key_value", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),),
)
# Transformers' classes hide what lies outside a window, where the published code of these may not.
_NO_WINDOW: dict[str, tuple[Any, ...]] = {"use_sliding_window": (False, None)}
_DREAM = _same("Qwen2ForCausalLM", "Dream", tokenizer="Qwen2Tokenizer", needs=_NO_WINDOW)
_A2D = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

BIDIRECTIONAL = Family("bidirectional", decoding="llada")
BIDIRECTIONAL_SHIFTED = Family("bidirectional_shifted", shifted=True, decoding="llada")
BLOCK_CAUSAL = Family("block_causal", "block_causal", decoding="block")
BLOCK_CAUSAL_SHIFTED = Family("block_causal_shifted", "block_causal", shifted=True, decoding="block")
CONTEXT_CAUSAL = Family("context_causal", "context_causal", shifted=True, opens_blocks=True, decoding="block")
# I-DLM (2604.11035): causal everywhere. TiDAR (2511.08923): masks predict their own token, written tokens the next one.
IDLM = Family("idlm", "causal", shifted=True, opens_blocks=True, decoding="idlm")
TIDAR = Family("tidar", "context_causal", decoding="tidar")
LLADA = Family("llada", decoding="llada", mask_id=126336, eos_ids=(126081, 126348), translation=_LLADA)
DREAM = Family("dream", shifted=True, decoding="dream", mask_id=151666, eos_ids=(151643, 151645), translation=_DREAM)
FAST_DLLM_V2 = Family(
    "fast_dllm_v2",
    "block_causal",
    shifted=True,
    opens_blocks=True,
    block_length=32,
    block_key="bd_size",
    decoding="fast_dllm_v2",
    mask_id=151665,
    eos_ids=(151645,),
    translation=_same("Qwen2ForCausalLM", "Fast_dLLM_Qwen", needs=_NO_WINDOW),
)
LLADA2 = Family(
    "llada2",
    "block_causal",
    block_length=32,
    decoding="llada2",
    mask_id=156895,
    eos_ids=(156892,),
    translation=_LLADA2,
)
_SDAR = Family(
    "sdar",
    "block_causal",
    block_length=4,
    block_key="block_size",
    decoding="sdar",
    mask_id=151669,
    eos_ids=(151643, 151645),
)
DIFFUSION_GEMMA = Family(
    "diffusion_gemma", "encoder_decoder", translation=_same("DiffusionGemmaForBlockDiffusion", "diffusion_gemma")
)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        BIDIRECTIONAL,
        BIDIRECTIONAL_SHIFTED,
        BLOCK_CAUSAL,
        BLOCK_CAUSAL_SHIFTED,
        CONTEXT_CAUSAL,
        IDLM,
        TIDAR,
        LLADA,
        replace(LLADA, name="llada_moe", translation=_LLADA_MOE, mask_id=156895, eos_ids=(156892,)),
        DREAM,
        replace(_SDAR, translation=_same("Qwen3ForCausalLM", "sdar", needs=_NO_WINDOW)),
        replace(_SDAR, name="sdar_moe", translation=_same("Qwen3MoeForCausalLM", "sdar_moe", needs=_NO_WINDOW)),
        FAST_DLLM_V2,
        LLADA2,
        *(
            replace(BIDIRECTIONAL, name=f"a2d_{kind}", translation=_same(native, f"a2d-{kind}"))
            for kind, native in _A2D.items()
        ),
        DIFFUSION_GEMMA,
    )
}
# Types of transformers' own that mask-noise diffusion is trained on; without facts in their config they attend fully.
STOCK = ("llama", "qwen2", "qwen3", "qwen3_moe", "glm4_moe")


def family_of(raw: Mapping[str, Any], name: str | None = None) -> Family:
    """The family of a checkpoint by its config.json; a `name` that is said goes before another that stands there.

    Read are, in this order: what Lockstitch wrote there (`diffusion`), the architecture, the model type. Raises `ValueError`
    for a name that nobody knows, for a type of no known family, with the known ones, and for a model that says that it is
    causal.
    """
    if name is not None and name not in FAMILIES:
        raise ValueError(f"family={name!r} is not one of {', '.join(FAMILIES)}")
    facts = raw.get(FACTS) or {}
    if facts and name in (None, facts.get("family")):
        if facts.get("family") not in FAMILIES:
            raise ValueError(
                f"config.json says diffusion family {facts.get('family')!r}, which is not one of {', '.join(FAMILIES)}"
            )
        return replace(FAMILIES[facts["family"]], block_length=facts.get("block_length"))
    known = _published_as(raw)
    if name is None and known is None and raw.get("model_type") in STOCK:
        if raw.get("is_causal") is True:
            raise ValueError(
                "config.json says is_causal=true: the model is autoregressive, and no diffusion model; `lockstitch adapt` "
                f"makes one of it, or family={'|'.join(FAMILIES)} says how to read it as one"
            )
        return BIDIRECTIONAL
    family = FAMILIES[name] if name is not None else known
    if family is None:
        types = sorted({one for each in FAMILIES.values() if each.translation for one in each.translation.model_types})
        raise ValueError(
            f"model type {raw.get('model_type')!r} is of no known diffusion family (known types: "
            f"{', '.join([*types, *STOCK])}); say how it attends and predicts with family="
            f"{'|'.join(FAMILIES)}, and trust_remote_code if it is not one of transformers' own"
        )
    said = raw.get(family.block_key) if family.block_key else None
    return replace(family, block_length=said) if said else family


def _published_as(raw: Mapping[str, Any]) -> Family | None:
    """The family whose published form a config.json has, or None."""
    kind, built = raw.get("model_type"), set(raw.get("architectures") or ())
    rows = [family for family in FAMILIES.values() if family.translation and kind in family.translation.model_types]
    told = [family for family in rows if family.translation and built & set(family.translation.architectures)]
    plain = [family for family in rows if family.translation and not family.translation.architectures]
    return next(iter(told or plain or rows), None)


def translation_of(raw: Mapping[str, Any]) -> Translation | None:
    """How a checkpoint with this config.json is read, or None where transformers reads it as it is."""
    family = _published_as(raw)
    return family.translation if family is not None else None


def native_values(
    raw: Mapping[str, Any], translation: Translation, understood: Callable[[str], bool]
) -> dict[str, Any]:
    """Values of the native config for a published one; keys that the native class does not know are left out.

    Args:
        raw: the published config.json.
        translation: its family's.
        understood: whether the native config has a key.

    Raises `ValueError` naming a setting that the native class cannot do, and one that is missing.
    """
    for key, accepted in translation.needs.items():
        value = raw.get(key, accepted[0])
        if isinstance(value, list) and "every layer" in accepted:
            value = None if all(one == 1 for one in value) else value
        if value not in accepted:
            said = " or ".join(repr(one) for one in accepted)
            raise ValueError(
                f"config.json says {key}={raw[key]!r}, which transformers' {translation.native} cannot do: "
                f"{said} is needed"
            )
    passed = {key: value for key, value in raw.items() if key not in _OF_FILES and understood(key)}
    try:
        renamed = {native: raw[key] for key, native in translation.config.items()}
        derived = translation.derived(raw)
    except KeyError as error:
        raise ValueError(f"config.json lacks {error.args[0]!r}, which a {raw.get('model_type')} model needs") from None
    return {**passed, **renamed, **derived}
