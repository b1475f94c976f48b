"""How a family attends: which position sees which, where the blocks are, and which settings fit.

- full: every position sees every other (LLaDA, Dream).
- block_causal: a position sees its own block and the blocks before (SDAR, LLaDA2.x, Fast-dLLM v2). Blocks are counted from
  the first token of the prompt, as in training, so the first block of a canvas holds the last tokens of the prompt too.
- context_causal: what is written is seen causally, the block being denoised sees itself and all of that (NBDiff,
  2512.06776; TiDAR, 2511.08923). Where its logits are shifted, a causal pass over what is written gives the block's first
  token.
- causal: every position sees those before it; masks of the block too see only the masks before them (I-DLM, 2604.11035).

Axes: L columns (padding, prompt, canvas), Q columns that ask, K columns that are seen.
"""

import dataclasses
from collections.abc import Iterator

import torch
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.families import Family
from lockstitch.sampling.remote import NATIVE, Calling

EXACT = {
    "full": {"none": True, "prefix": False, "dual": False, "interval": False},
    "block_causal": {"none": True, "block": True},
    "context_causal": {"none": True, "block": True},
    "causal": {"none": True, "block": True},
}


def check_layout(config: SamplerConfig, family: Family, calling: Calling = NATIVE) -> None:
    """Raises `ValueError` if the settings do not fit the family, or what its code can be asked for, naming those that do."""
    if config.policy == "verify":
        if family.layout not in ("context_causal", "causal"):
            raise ValueError(
                f"policy='verify' checks drafts by causal logits, which {family.name} models do not have: context_causal, "
                "tidar and idlm models do"
            )
        if config.block_length is None and family.block_length is None:
            raise ValueError("block_length=None: policy='verify' needs the number of tokens that a pass checks")
        if config.trust not in (None, 1) and family.shifted:
            raise ValueError(
                f"trust={config.trust}: masks of {family.name} models say nothing of the token after what is written; 1"
            )
        if not (calling.keeps_keys and calling.honours_mask and calling.keeps_columns):
            raise ValueError("policy='verify': this model's own code does not take what it needs")
    if config.cache not in EXACT[family.layout]:
        accepted = ", ".join(EXACT[family.layout])
        why = "whose finished blocks still see later ones" if family.layout == "full" else "where `block` is exact"
        raise ValueError(f"cache={config.cache!r} is not for {family.name} models, {why}: {accepted}")
    if config.cache != "none" and not (calling.keeps_keys and calling.honours_mask):
        raise ValueError(
            f"cache={config.cache!r}: this model's own code or its attention does not take what a cache needs; "
            "cache='none'"
        )
    if config.extension is not None and family.layout == "full":
        raise ValueError(
            f"extension={config.extension}: every position of {family.name} models sees what is behind a block "
            "already; block-causal and context-causal models do not"
        )
    if config.extension is not None and config.blocks == 1:
        raise ValueError(
            f"extension={config.extension} would be ignored: the canvas of {config.canvas_length} is one block"
        )
    if config.length != "fixed" and family.layout != "full":
        raise ValueError(
            f"length={config.length!r} asks how sure the model is of an end that {family.name} models do not "
            "see from the block; length='fixed'"
        )
    if config.whole_blocks and family.layout != "block_causal":
        raise ValueError(f"whole_blocks=True would be ignored: blocks of {family.name} models begin with the canvas")
    if family.opens_blocks and not family.shifted:
        raise ValueError(f"{family.name}: a family that opens blocks must predict the next token")


def in_blocks_of(config: SamplerConfig, family: Family) -> SamplerConfig:
    """The settings with the model's own block length where they say none and the model has one.

    A canvas that is shorter is one block of its own, unless blocks are whole.
    """
    if config.block_length is not None or family.layout == "full":
        return config
    if config.whole_blocks:
        return dataclasses.replace(config, block_length=family.block_length or config.canvas_length)
    if family.block_length is None:
        return config
    return dataclasses.replace(config, block_length=min(family.block_length, config.canvas_length))


def is_exact(cache: str, family: Family) -> bool:
    """Whether a cache changes nothing but the cost, for this family."""
    return EXACT[family.layout][cache]


def alignment(config: SamplerConfig, family: Family) -> int:
    """Blocks are counted from the prompt's first token where this is above 1, and rows share a batch if their prompts'
    lengths leave the same remainder by it: then blocks lie in the same columns."""
    return config.block if family.layout == "block_causal" and (config.blocks > 1 or config.whole_blocks) else 1


def blocks(length: int, block: int, lead: int = 0) -> Iterator[tuple[int, int]]:
    """Start and stop of each block of a canvas; the first one is shorter by the `lead` prompt tokens that it holds too.

    A block as long as the canvas is all of it, whatever the lead.
    """
    start, stop = 0, block - lead % block if block < length else length
    while start < length:
        yield start, min(stop, length)
        start, stop = stop, stop + block


def block_numbers(columns: int, low: int, edges: list[int], block: int) -> torch.Tensor:
    """The block of each column, `(L,)`: 0 from column `low` on, one more from each of `edges`, negative in the prompt."""
    column_L = torch.arange(columns)
    number_L = torch.bucketize(column_L, torch.tensor(edges), right=True)
    return torch.where(column_L < low, (column_L - low) // block, number_L)


def visible(layout: str, query_Q: torch.Tensor, key_K: torch.Tensor, number_L: torch.Tensor, low: int) -> torch.Tensor:
    """Which key column each query column sees, bool `(Q, K)`, padding aside; `low` is where the block begins."""
    if layout == "full":
        return torch.ones(len(query_Q), len(key_K), dtype=torch.bool, device=query_Q.device)
    if layout == "block_causal":
        return number_L[key_K] <= number_L[query_Q][:, None]
    if layout == "causal":
        return key_K <= query_Q[:, None]
    return (key_K <= query_Q[:, None]) | (query_Q >= low)[:, None]
