"""Which likelihood estimator, and with what settings: one flat, validated record."""

from dataclasses import dataclass

REPLAYING = ("trajectory", "forks", "autoregressive")
ESTIMATORS = ("mean_field", "coupled", "elbo", "sandwiched", *REPLAYING)
SCHEDULES = ("random", "stratified", "complement", "quadrature")
DISTRIBUTIONS = ("iid", "count", "block_random")
SCOPES = ("valid", "canvas")

_SAMPLED = ("coupled", "elbo", "sandwiched")
# Estimators that read an option; elsewhere it is refused.
_BELONGS = {
    "num_samples": _SAMPLED,
    "mask_schedule": ("elbo",),
    "mask_distribution": ("elbo", "sandwiched"),
    "block_length": ("elbo", "sandwiched"),
    "perturb_ratio": ("elbo", "sandwiched"),
    "prompt_mask_ratio": ("mean_field", *_SAMPLED),
    "segments": ("trajectory",),
    "segments_drawn": ("trajectory",),
    "surprisal_temperature": ("trajectory",),
    "clean_threshold": ("trajectory",),
    "position_temperature": ("trajectory",),
    "eubo_beta": ("sandwiched",),
    "eubo_mix": ("sandwiched",),
}


@dataclass(frozen=True)
class EstimatorConfig:
    """Settings of `estimate`.

    Attributes:
        estimator: `mean_field`, `coupled`, `elbo`, `sandwiched`, `trajectory`, `forks` or
            `autoregressive`.
        num_samples: Monte Carlo samples (pairs of them under `complement`), or nodes of the quadrature; None is 1.
        mask_schedule: how `elbo` chooses mask ratios: `random`; `stratified`, one in each of `num_samples` equal parts;
            `complement`, random, and what one pass hides the next one shows (ESPO); `quadrature`, Gauss-Legendre nodes
            (GDPO). None is `random`.
        mask_distribution: `iid`, each position by itself; `count`, exactly so many; `block_random`, part of one random
            block and all after it (SPG). None is `count`.
        block_length: positions of a block, for `block_random`.
        perturb_ratio: share of the tokens before the block that `block_random` hides too; None is 0.
        prompt_mask_ratio: share of prompt tokens that are masked; None is 0.
        segments: into how many `trajectory` divides the denoising steps; None is a segment for each.
        segments_drawn: how many of the segments `trajectory` visits, drawn anew in each inner iteration; each counts the
            number of segments over that of visits, so that the mean is that of all of them. None is all.
        surprisal_temperature: the segments are drawn with probability softmax(mean surprisal of their tokens / this) in
            place of evenly, and each counts once (RLDF, 2605.25638: 1). None is evenly.
        clean_threshold: a visit also scores what is still masked, where its final token has at least this probability (RLDF:
            0.6); 1 is what was committed there alone, 0 all that is masked. None is 1, and needs no passes to find out.
        position_temperature: also how likely the committed positions are chosen among the masked ones of their block, by
            softmax(log-probability of their token / this) (Mask-Aware PG, 2607.15200: 0.5). None is not.
        eubo_beta: beta of the upper bound; None is 1.5.
        eubo_mix: share of the upper bound in the mixture with the lower one; None is 0.5, and 1 the bound alone.
        scope: whose tokens are scored: `valid`, those up to EOS (what follows stays masked), or the whole `canvas`.

    Raises `ValueError` for values out of range and for options that the other choices would ignore.
    """

    estimator: str = "elbo"
    num_samples: int | None = None
    mask_schedule: str | None = None
    mask_distribution: str | None = None
    block_length: int | None = None
    perturb_ratio: float | None = None
    prompt_mask_ratio: float | None = None
    segments: int | None = None
    segments_drawn: int | None = None
    surprisal_temperature: float | None = None
    clean_threshold: float | None = None
    position_temperature: float | None = None
    eubo_beta: float | None = None
    eubo_mix: float | None = None
    scope: str = "valid"

    def __post_init__(self) -> None:
        for name, choices in (
            ("estimator", ESTIMATORS),
            ("mask_schedule", SCHEDULES),
            ("mask_distribution", DISTRIBUTIONS),
            ("scope", SCOPES),
        ):
            value = getattr(self, name)
            if value not in choices and (value is not None or name in ("estimator", "scope")):
                raise ValueError(f"{name}={value!r} is not one of {', '.join(choices)}")
        for name, estimators in _BELONGS.items():
            value = getattr(self, name)
            if value is not None and self.estimator not in estimators:
                raise ValueError(
                    f"{name}={value!r} would be ignored by estimator={self.estimator!r}; it is for "
                    f"{', '.join(estimators)}"
                )
        for name in ("num_samples", "block_length", "segments", "segments_drawn"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
        for name in ("perturb_ratio", "prompt_mask_ratio", "eubo_mix", "clean_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must be in [0, 1]")
        for name in ("eubo_beta", "surprisal_temperature", "position_temperature"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        self._check_blocks()
        self._check_segments()

    def _check_segments(self) -> None:
        for name in ("surprisal_temperature", "clean_threshold"):
            if getattr(self, name) is not None and self.segments_drawn is None:
                raise ValueError(
                    f"{name}={getattr(self, name)} needs segments_drawn, the number of those that are visited"
                )
        if self.position_temperature is not None and self.segments is not None:
            raise ValueError(
                f"position_temperature={self.position_temperature}: segments={self.segments} holds positions of several "
                "steps, and which was chosen first is not scored; without segments"
            )

    def _check_blocks(self) -> None:
        if self.mask_distribution == "block_random":
            if self.block_length is None:
                raise ValueError("block_length=None: mask_distribution='block_random' needs a number of positions")
            if self.mask_schedule not in (None, "random"):
                raise ValueError(
                    f"mask_schedule={self.mask_schedule!r}: mask_distribution='block_random' draws how much "
                    "of the block it hides; random"
                )
            return
        for name in ("block_length", "perturb_ratio"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name}={getattr(self, name)} would be ignored by "
                    f"mask_distribution={self.mask_distribution!r}; it is for block_random"
                )

    @property
    def exact(self) -> bool:
        """Whether tokens are scored given what they were drawn given, each by itself: then, and only then, their ratio can
        be the sampling policy's."""
        some = (self.segments, self.segments_drawn, self.clean_threshold)
        return self.estimator in REPLAYING and some == (None, None, None)

    @property
    def samples(self) -> int:
        """Monte Carlo samples, pairs of them, or nodes."""
        return self.num_samples or 1

    @property
    def beta(self) -> float:
        """Beta of the upper bound."""
        return 1.5 if self.eubo_beta is None else self.eubo_beta

    @property
    def mix(self) -> float:
        """Share of the upper bound in the mixture."""
        return 0.5 if self.eubo_mix is None else self.eubo_mix
