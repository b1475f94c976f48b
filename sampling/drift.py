"""How far an approximate cache drifts from the model it stands for, on a user's own prompts.

The run with the cache is followed step by step, and at each the model is asked once more, without any cache, about the very
same canvas: so `kl` is what the cache does to a decision, not what earlier decisions have led to. `tokens` says what becomes
of it in the end, against a run that never had a cache.

Axes: A active rows, G canvas positions, M places that are asked for (a row and a position), V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from lockstitch.sampling.batching import batches
from lockstitch.sampling.caches import Passes
from lockstitch.sampling.canvases import Canvases, Place
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.denoising import Denoising
from lockstitch.sampling.layouts import in_blocks_of, is_exact
from lockstitch.sampling.loop import Prompt, make_rows, sample
from lockstitch.sampling.trajectory import Trajectory


@dataclass(frozen=True)
class Drift:
    """What a cache changed.

    Attributes:
        exact: whether the cache is exact for the model's layout, so that only rounding is left.
        tokens: share of canvas positions that hold the same token with and without the cache, in [0, 1].
        kl: mean KL(without || with) over every masked position that was asked for at every step, in nats.
        nfe, plain_nfe: mean forward passes of a trajectory with the cache, and without.
        tokens_forwarded, plain_tokens_forwarded: mean tokens of those passes.
    """

    exact: bool
    tokens: float
    kl: float
    nfe: float
    plain_nfe: float
    tokens_forwarded: float
    plain_tokens_forwarded: float


def _without_cache(config: SamplerConfig) -> SamplerConfig:
    return dataclasses.replace(config, cache="none", refresh=None)  # which is of the cache `interval`


class _Meter(Passes):
    """Passes with a cache that are asked again without one, and how far apart the answers are, added up."""

    def __init__(self, denoiser: Denoiser, canvases: Canvases, config: SamplerConfig) -> None:
        super().__init__(denoiser, canvases, config)
        self.plain = Passes(denoiser, canvases, _without_cache(config))
        self.kl, self.asked = 0.0, 0

    def begin_stage(self, lead: int) -> None:
        super().begin_stage(lead)
        self.plain.begin_stage(lead)

    def open_block(self, starts: Sequence[int], stop: int) -> None:
        super().open_block(starts, stop)
        self.plain.open_block(starts, stop)

    def logits(self, rows_A: torch.Tensor, asked: Place) -> torch.Tensor:
        logits_MV = super().logits(rows_A, asked)
        least = torch.finfo(torch.float32).min  # so that 0 log 0 is 0
        logp_MV = logits_MV.float().log_softmax(-1).clamp_(min=least)
        plain_MV = self.plain.logits(rows_A, asked).float().log_softmax(-1).clamp_(min=least)
        kl_M = (plain_MV.exp() * (plain_MV - logp_MV)).sum(-1)
        masked_M = self.canvases.masked_BG[rows_A[asked[0]], asked[1]]
        self.kl += float(kl_M.cpu()[masked_M].double().sum())
        self.asked += int(masked_M.sum())
        return logits_MV


@torch.inference_mode()
def measure_drift(
    denoiser: Denoiser,
    prompts: Sequence[Prompt],
    config: SamplerConfig,
    n: int = 1,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Drift:
    """Draws `n` trajectories of each prompt with `config`'s cache and without, and says what the cache changed.

    Costs up to three times what `sample` without a cache does. `progress` is called with the number of trajectories that
    were just finished; each is drawn twice. Raises `ValueError` for `cache='none'`, where there is
    nothing to measure, for no prompts, and for whatever `sample` refuses.
    """
    if config.cache == "none":
        raise ValueError("cache='none' has no drift; say which cache to measure")
    if config.speculate is not None:
        raise ValueError(f"speculate={config.speculate}: drift is measured step by step; None, as it changes no token")
    if config.policy == "verify":
        raise ValueError("policy='verify' has no drift: its cache is exact")
    if not prompts:
        raise ValueError("no prompts to measure drift on: at least 1")
    config = in_blocks_of(config, denoiser.family)
    rows = make_rows(denoiser, prompts, config, n, seed)
    cached: dict[int, Trajectory] = {}
    kl, asked = 0.0, 0
    for batch in batches(rows, denoiser, config):
        run = Denoising(denoiser, [rows[i] for i in batch], config)
        run.passes = meter = _Meter(denoiser, run.canvases, config)
        cached.update(zip(batch, run.run(), strict=True))
        kl, asked = kl + meter.kl, asked + meter.asked
        if progress is not None:
            progress(len(batch))
    plain = sample(denoiser, prompts, _without_cache(config), n, seed, progress=progress)
    pairs = [(cached[i], t) for i, t in enumerate(plain)]
    same = [a == b for with_, without in pairs for a, b in zip(with_.canvas_ids, without.canvas_ids, strict=True)]
    return Drift(
        exact=is_exact(config.cache, denoiser.family),
        tokens=sum(same) / len(same),
        kl=kl / max(1, asked),
        nfe=sum(with_.ledger.nfe for with_, _ in pairs) / len(pairs),
        plain_nfe=sum(without.ledger.nfe for _, without in pairs) / len(pairs),
        tokens_forwarded=sum(with_.ledger.tokens_forwarded for with_, _ in pairs) / len(pairs),
        plain_tokens_forwarded=sum(without.ledger.tokens_forwarded for _, without in pairs) / len(pairs),
    )
