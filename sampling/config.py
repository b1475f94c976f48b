"""How to sample: four orthogonal choices (policy, cache, length, correction) as one flat, validated record.

The layout is the model's own and comes with the `Denoiser`; `check_layout` in `layouts.py` says which choices fit which
layout. Named combinations are in `presets.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

POLICIES = ("quota", "random", "threshold", "factor", "entropy_bound", "deferred", "verify")
CERTAINTIES = ("probability", "margin", "entropy")
CACHES = ("none", "prefix", "dual", "interval", "block")
LENGTHS = ("fixed", "dynamic", "survival")
CORRECTIONS = ("none", "remdm", "edit", "revise")
SIGMAS = ("cap", "rescale", "confidence")
FALLBACKS = ("certain", "leftmost")
ACCEPTANCES = ("agreement", "ratio")
DRAFTS = ("each", "last")

_CHOICES = {
    "policy": POLICIES,
    "certainty": (*CERTAINTIES, None),
    "cache": CACHES,
    "length": LENGTHS,
    "correction": CORRECTIONS,
    "sigma": (*SIGMAS, None),
    "fallback": (*FALLBACKS, None),
    "acceptance": (*ACCEPTANCES, None),
    "drafts": (*DRAFTS, None),
}
# An option belongs to some values of an axis: there it may be said (and must be, if it is needed), elsewhere it is refused.
_BELONGS = {
    "steps": ("policy", ("quota", "random", "threshold")),
    "threshold": ("policy", ("threshold", "deferred")),
    "fallback": ("policy", ("threshold",)),
    "factor": ("policy", ("factor",)),
    "entropy_bound": ("policy", ("entropy_bound",)),
    "window": ("policy", ("deferred",)),
    "window_limit": ("policy", ("deferred",)),
    "extension": ("policy", ("deferred",)),
    "certainty": ("policy", ("quota", "threshold", "factor", "deferred")),
    "schedule_eps": ("policy", ("quota", "random")),
    "acceptance": ("policy", ("verify",)),
    "trust": ("policy", ("verify",)),
    "lenience": ("policy", ("verify",)),
    "drafts": ("policy", ("verify",)),
    "sub_block_length": ("policy", ("quota", "random", "threshold", "factor", "entropy_bound")),
    "refresh": ("cache", ("interval",)),
    "max_length": ("length", ("dynamic",)),
    "sigma": ("correction", ("remdm",)),
    "eta": ("correction", ("remdm",)),
    "edit_threshold": ("correction", ("edit",)),
    "revise_fraction": ("correction", ("revise",)),
    "revise_blocks": ("correction", ("revise",)),
}
_DRAWN = ("top_k", "top_p")  # of a draw, which there is none of at temperature 0
_NEEDED = ("threshold", "factor", "entropy_bound", "max_length", "sigma", "edit_threshold", "revise_fraction")
_WHOLE = ("canvas_length", "block_length", "sub_block_length", "steps", "window", "window_limit", "extension", "refresh",
          "max_length", "speculate", "batch_size", "top_k")  # fmt: skip
_AT_LEAST_ZERO = ("threshold", "factor", "entropy_bound", "edit_threshold", "cfg_scale", "temperature")
_ACCEPTANCE_OF = {"trust": "agreement", "lenience": "ratio"}
_SHARES = ("eta", "revise_fraction", "trust", "lenience")
_ETA = {"cap": 0.008, "rescale": 0.015, "confidence": 1.0}


def ignored(name: str, chosen: Mapping[str, Any]) -> str | None:
    """Why a setting that is said would be ignored beside the other choices; None where it counts.

    Args:
        name: a field of `SamplerConfig`.
        chosen: all fields, by name.
    """
    axis, values = _BELONGS.get(name, ("policy", POLICIES))
    value = chosen[axis]
    if value in values and name in ("trust", "lenience"):
        axis, value, values = "acceptance", chosen["acceptance"] or "agreement", (_ACCEPTANCE_OF[name],)
    if value not in values:
        return f"by {axis}={value!r}; it is for {', '.join(values)}"
    return "at temperature=0" if name in _DRAWN and chosen["temperature"] == 0 else None


@dataclass(frozen=True)
class SamplerConfig:
    """Settings of `sample`.

    Attributes:
        canvas_length: tokens of the canvas, G; under `length=dynamic` what it starts from, under `survival` the most.
        block_length: positions denoised together before the next ones; None is the model's own block, and the whole canvas
            of models that have none. Must divide G, unless blocks are whole.
        sub_block_length: positions of a block that are denoised before the next ones of it, all of the block being seen
            (Fast-dLLM v2, 2509.26328); None is the whole block, which it must divide.
        whole_blocks: blocks are counted as SDAR (2510.06303) and LLaDA2.x count them where the prompt ends inside a block: a
            step's quota is that of a whole block, prompt tokens included, and the last block is denoised to its end, of
            which the completion is cut off at G, which may be any length. For block-causal models.
        policy: which masked positions commit at a step. `quota`: a fixed number of them, the most certain first (LLaDA,
            2502.09992); `random`: as many, drawn at random; `threshold`: all that are at least so certain, and always
            one (Fast-dLLM, 2505.22618); `factor`: the largest k whose k-th certainty reaches 1 - factor / (k + 1)
            (Fast-dLLM); `entropy_bound`: the lowest entropies while they add up to little (2505.24857); `deferred`: a
            threshold inside a window that slides over the block (DCD, 2601.02076); `verify`: tokens are drafted by masks and
            checked by the causal logits of what is written, in one pass (TiDAR, 2511.08923; I-DLM, 2604.11035). Its
            `block_length` is the most tokens that a pass checks.
        steps: denoising steps of the whole canvas under `quota` and `random`; None is one token a step. Under `threshold`
            the most there may be: a step commits at least what `quota` would (LLaDA2.x); None is at least one token. A
            multiple of the number of blocks.
        schedule_eps: a step of `quota` and `random` commits the share 1 - s/t of the masks, rounded down, t falling linearly
            from 1 to this (Dream, 2508.15487: 0.001), and the last step the rest; None shares them out evenly.
        threshold: certainty that commits under `threshold` and `deferred`; above 1 means one token a step.
        fallback: what `threshold` commits where nothing reaches it: the most `certain` position, or the `leftmost`
            (Fork-dLLM, 2609.39859); None is `certain`.
        factor: how generous `factor` is; 0 means one token a step.
        entropy_bound: nats that the committed entropies but the largest may add up to; 0 means one token a step.
        window: masks that the window of `deferred` may hold; None is 16.
        window_limit: positions that the window of `deferred` may span; None is 128.
        extension: most positions that a block of `deferred` grows by, four at a time, where the window reaches its right
            edge and a certainty below 0.3 would be committed (16 in DCD); None is none. For block-causal and
            context-causal models.
        acceptance: which drafted tokens `verify` keeps. `agreement`: those that are what the pass would have drawn itself;
            `ratio`: each with probability min(1, p / q) of the causal and the drafting distribution, the first that is not
            kept being drawn from what p has over q (2211.17192). None is `agreement`.
        trust: under `agreement`, tokens are drawn from trust x causal logits + (1 - trust) x drafting logits: 1 is the
            causal model's own text, 0 the masks'; None is 1. Below 1 for models whose masks predict their own token.
        lenience: under `ratio`, q counts for so much of itself, above 0: below 1 more is kept, and the text is no longer the
            causal model's; None is 1.
        drafts: where masks stand under `verify`: after `each` drafted token, so that the next draft is there however many
            are kept, or after the `last` one, in fewer rows, so that a pass in which one is refused drafts nothing.
            None is `each`.
        certainty: what a policy ranks by: `probability` of the drawn token, `margin` between the two most likely ones,
            or `entropy` (exp of minus it, in (0, 1]); None is `probability`.
        temperature: tokens are drawn from softmax(logits / temperature); 0 takes the most likely one.
        top_k: draw among the k most likely tokens alone; None is all. Needs a temperature.
        top_p: draw among the fewest most likely tokens whose probabilities reach p; None is all. Needs a temperature.
        cfg_scale: classifier-free guidance away from the masked prompt, at twice the passes; 0 is none.
        cache: keys and values kept between steps. `none`; `prefix` and `dual` recompute from the block on, or the block
            alone (Fast-dLLM), `interval` the window of `deferred` (DCD), all three approximate; `block` keeps finished
            blocks (exact, for block-causal and context-causal models).
        refresh: commits of a row after which `interval` recomputes everything; None is 32.
        length: `fixed`; `dynamic`: the canvas grows where the model needs more room (DAEDAL, 2508.00819); `survival`: it is
            cut to the whole blocks that one pass over it expects (2608.26374).
        max_length: most tokens of a canvas under `length=dynamic`.
        correction: which committed positions are taken back. `none`; `remdm` reopens at random (2503.00307); `edit`
            overwrites what the model no longer believes (LLaDA2.1); `revise` reopens the least confident of a finished
            draft (Diffusion in Diffusion, 2601.13599).
        sigma: the share that `remdm` reopens: at most eta (`cap`), eta of what can be (`rescale`), or that by how unsure
            each position was (`confidence`).
        eta: see `sigma`, in [0, 1]; None is 0.008, 0.015 and 1 in turn.
        edit_threshold: `edit` overwrites a token when another has more than this probability; from 1 on it never does.
        revise_fraction: share of the written canvas that each stage of `revise` reopens, in [0, 1].
        revise_blocks: block length of each stage of `revise`, such as `32,128`, with `canvas` for all of it; None is one
            stage over the whole canvas.
        speculate: steps drafted ahead and checked in one pass: the same trajectory, fewer passes in a row, more rows
            (Spiffy, 2509.18085); None is none.
        stop_at_eos: a row ends once everything before its first EOS is committed.
        batch_size: most rows in one forward pass, drafted ones included; a CPU may take fewer at a time. Changes speed and
            memory, never results.

    Raises `ValueError` for values out of range and for options that the other choices would ignore.
    """

    canvas_length: int
    block_length: int | None = None
    sub_block_length: int | None = None
    whole_blocks: bool = False
    policy: str = "quota"
    steps: int | None = None
    schedule_eps: float | None = None
    threshold: float | None = None
    fallback: str | None = None
    factor: float | None = None
    acceptance: str | None = None
    trust: float | None = None
    lenience: float | None = None
    drafts: str | None = None
    entropy_bound: float | None = None
    window: int | None = None
    window_limit: int | None = None
    extension: int | None = None
    certainty: str | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    cfg_scale: float = 0.0
    cache: str = "none"
    refresh: int | None = None
    length: str = "fixed"
    max_length: int | None = None
    correction: str = "none"
    sigma: str | None = None
    eta: float | None = None
    edit_threshold: float | None = None
    revise_fraction: float | None = None
    revise_blocks: str | None = None
    speculate: int | None = None
    stop_at_eos: bool = True
    batch_size: int = 64

    def __post_init__(self) -> None:
        self._check_values()
        for name, (axis, values) in _BELONGS.items():
            value, chosen = getattr(self, name), getattr(self, axis)
            reason = None if value is None else ignored(name, vars(self))
            if reason is not None:
                raise ValueError(f"{name}={value!r} would be ignored {reason}")
            if value is None and chosen in values and name in _NEEDED:
                raise ValueError(
                    f"{name}=None: {axis}={chosen!r} needs a number"
                    if name != "sigma"
                    else f"sigma=None: correction='remdm' needs one of {', '.join(SIGMAS)}"
                )
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise ValueError(f"top_k={self.top_k}, top_p={self.top_p} would be ignored at temperature=0")
        if self.policy == "verify":
            self._check_verify()
        elif not self.whole_blocks or self.block_length is not None:  # else the model's blocks are not known yet
            self._check_blocks()
        self._check_combinations()
        self.stage_blocks  # noqa: B018  (refuses what it cannot read)

    def _check_values(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                said = ", ".join(choice for choice in choices if choice)
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {said}")
        for name in _WHOLE:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
        for name in _AT_LEAST_ZERO:
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be a finite number of at least 0")
        for name in _SHARES:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must be in [0, 1]")
        if self.schedule_eps is not None and not -1 < self.schedule_eps < 1:
            raise ValueError(f"schedule_eps={self.schedule_eps} must be between -1 and 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be in (0, 1]")

    def _check_blocks(self) -> None:
        if self.canvas_length % self.block and not self.whole_blocks:
            whole = [str(one) for one in range(1, self.canvas_length + 1) if self.canvas_length % one == 0]
            raise ValueError(
                f"block_length={self.block} does not divide canvas_length={self.canvas_length}; {', '.join(whole)} do"
            )
        if self.sub_block_length is not None and self.block % self.sub_block_length:
            raise ValueError(f"sub_block_length={self.sub_block_length} does not divide block_length={self.block}")
        most = self.blocks * self.block
        if (self.policy in ("quota", "random") or self.steps is not None) and (
            not self.blocks <= self.total_steps <= most or self.total_steps % self.blocks
        ):
            of = "canvas_length" if most == self.canvas_length else "the positions of whole blocks"
            raise ValueError(
                f"steps={self.total_steps} must be a multiple of the {self.blocks} blocks and at most {of}={most}"
            )

    def _check_combinations(self) -> None:
        if self.correction == "remdm" and self.policy not in ("quota", "random"):
            raise ValueError(
                f"correction='remdm' needs a schedule of steps: policy={self.policy!r} has none; quota and random have"
            )
        if self.schedule_eps is not None and self.correction == "remdm":
            raise ValueError(
                f"schedule_eps={self.schedule_eps} would be ignored by correction='remdm' and its own schedule"
            )
        if self.fallback == "leftmost" and self.steps is not None:
            raise ValueError(
                f"steps={self.steps} would have the most certain positions commit where fewer reach the "
                "threshold, and fallback='leftmost' the leftmost one: say one of them"
            )
        if self.whole_blocks and (self.length != "fixed" or self.correction == "revise"):
            raise ValueError(
                "whole_blocks=True goes with length='fixed' and blocks of one length: not with "
                f"length={self.length!r}, correction={self.correction!r}"
            )
        if (
            self.extension is not None and self.blocks == 1 and self.block_length is not None
        ):  # else it may be the model's
            raise ValueError(
                f"extension={self.extension} would be ignored: the canvas of {self.canvas_length} is one block"
            )
        if self.speculate is not None:
            self._check_speculation()
        if self.cache == "interval" and self.policy != "deferred":
            raise ValueError(
                f"cache='interval' recomputes the window of policy='deferred', and policy={self.policy!r} has "
                "none: deferred, or another cache"
            )
        if self.length == "survival" and (self.block_length is None or self.blocks == 1):
            raise ValueError(
                f"length='survival' cuts canvases to whole blocks, and block_length={self.block_length} leaves "
                f"one of {self.canvas_length}: say a shorter one"
            )
        if self.length == "dynamic":
            assert self.max_length is not None
            if self.max_length < self.canvas_length:
                raise ValueError(f"max_length={self.max_length} is below canvas_length={self.canvas_length}")
            for name, needed in (("cache", "none"), ("correction", "none"), ("cfg_scale", 0.0), ("stop_at_eos", True)):
                if getattr(self, name) != needed:
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} does not go with length='dynamic', whose canvas "
                        f"moves: {needed!r} does"
                    )
            if self.policy in ("quota", "random"):
                raise ValueError(
                    f"policy={self.policy!r} counts steps of a fixed canvas; length='dynamic' takes "
                    "threshold, factor, entropy_bound and deferred"
                )
            if self.steps is not None:
                raise ValueError(
                    f"steps={self.steps} are those of a fixed canvas, and that of length='dynamic' grows: None"
                )

    def _check_verify(self) -> None:
        """Drafted tokens move over the canvas one pass after another, whatever the blocks of other policies."""
        for name, needed in (
            ("correction", "none"),
            ("length", "fixed"),
            ("cfg_scale", 0.0),
            ("whole_blocks", False),
            ("speculate", None),
        ):
            if getattr(self, name) != needed:
                raise ValueError(f"{name}={getattr(self, name)!r} does not go with policy='verify': {needed!r} does")
        if self.cache not in ("none", "block"):
            raise ValueError(f"cache={self.cache!r} is not for policy='verify': none, block")
        if self.drafts == "last" and self.trust is not None and self.trust < 1:
            raise ValueError(f"trust={self.trust} mixes in what masks say after each drafted token: drafts='each'")
        if self.lenience == 0:
            raise ValueError("lenience=0.0 must be above 0")

    def _check_speculation(self) -> None:
        said = f"speculate={self.speculate}"
        for name, refused in (("policy", ("deferred",)), ("correction", ("remdm", "edit")), ("length", ("dynamic",))):
            if getattr(self, name) in refused:
                raise ValueError(
                    f"{said} does not go with {name}={getattr(self, name)!r}: a step must follow from the "
                    "canvas and its number alone"
                )
        if self.block == 1 or (self.policy in ("quota", "random") and self.total_steps == self.blocks):
            raise ValueError(f"{said} would be ignored: each of the {self.blocks} blocks takes one step")

    @property
    def block(self) -> int:
        """Positions in a block."""
        return self.block_length or self.canvas_length

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.canvas_length // self.block)

    @property
    def total_steps(self) -> int:
        """Denoising steps of the whole canvas by its quota."""
        return self.steps or self.blocks * self.block

    @property
    def share_reopened(self) -> float:
        """`eta`, or what the paper sets it to for this `sigma`."""
        assert self.sigma is not None
        return _ETA[self.sigma] if self.eta is None else self.eta

    @property
    def stage_blocks(self) -> tuple[int, ...]:
        """The block length of each stage: the draft's, then those of `revise`."""
        if self.correction != "revise":
            return (self.block,)
        lengths = [self.block]
        for part in (self.revise_blocks or "canvas").split(","):
            length = str(self.canvas_length) if part.strip() == "canvas" else part.strip()
            if not length.isdecimal() or int(length) < 1 or self.canvas_length % int(length):
                raise ValueError(
                    f"revise_blocks={self.revise_blocks!r}: {part.strip()!r} is neither 'canvas' nor a length "
                    f"that divides canvas_length={self.canvas_length}"
                )
            lengths.append(int(length))
        return tuple(lengths)
