"""Sampling with uniform noise: DiffusionGemma's schedule, prompts in, trajectories out.

The canvas starts as random tokens and is denoised block by block (a block is what the model's config calls a canvas). At
each denoising step the decoder predicts every position of the block. The predictions of least entropy are *accepted*, as
many as the entropy bound allows (2505.24857), and take a token drawn from their distribution; all other positions, earlier
accepted ones too, are *renoised*. The temperature falls from step to step. A row's block ends, with the most likely token
everywhere, once these tokens have not changed for some steps and the mean entropy is low, or with the last step. The
encoder then reads the block, and the next one starts.

Given the same noise this is, token for token, what `generate` of transformers does at batch 1. Here the noise
belongs to the trajectory, rows do not depend on one another, and a row whose block or completion has ended is not computed.
Leaves out pinned positions, bans and guidance.

Axes: B rows in a batch, A of them active, R of these in a slice, C positions of a block, G of the canvas, P chosen
positions, V vocabulary.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lockstitch.sampling.diffusion_gemma import DiffusionGemmaDenoiser, Prefix
from lockstitch.sampling.noise import derive_seed, uniform
from lockstitch.sampling.trajectory import Edit, Ledger, Trajectory

Prompt = str | Sequence[int]

SLICE = 2**24  # most logits held at a time (64 MB of float32), unless one row alone has more
_SCHEDULE = ("max_denoising_steps", "t_max", "t_min", "stability_threshold", "confidence_threshold")
CHUNK = 256  # tokens whose probabilities are summed first when a distribution is inverted


@dataclass(frozen=True)
class UniformConfig:
    """Settings of `sample_uniform`; the schedule's names and defaults are those of transformers' generation config.

    Attributes:
        canvas_length: tokens of the whole canvas, G.
        block_length: positions denoised together before the next ones; None is the model's own number, which it was
            trained with. Must divide G.
        max_denoising_steps: most denoising steps of a block.
        entropy_bound: in nats. Positions are accepted in the order of their entropies, as long as the entropies of those
            before come to no more than this; so at least one is. 0 accepts one (and any of no entropy).
        t_max, t_min: the temperature falls linearly from `t_max` at a block's first step to just above `t_min` at its
            last one; entropies are those of the distribution at that temperature.
        stability_threshold: for how many steps in a row the most likely tokens must have stayed the same before a block
            may end early.
        confidence_threshold: in nats, what the block's mean entropy must then be below. Both None: no early end.
        stop_at_eos: a row ends with the block that holds its first EOS.
        batch_size: most rows in one forward pass. Changes speed and memory, never results.

    Raises `ValueError` for values out of range and for options that would be ignored.
    """

    canvas_length: int
    block_length: int | None = None
    max_denoising_steps: int = 48
    entropy_bound: float = 0.1
    t_max: float = 0.8
    t_min: float = 0.4
    stability_threshold: int | None = 1
    confidence_threshold: float | None = 0.005
    stop_at_eos: bool = True
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("canvas_length", "block_length", "max_denoising_steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
        if self.block_length is not None:
            self.blocks(self.block_length)
        if not self.entropy_bound >= 0:
            raise ValueError(f"entropy_bound={self.entropy_bound} must be a number of at least 0")
        if not (0 <= self.t_min <= self.t_max and 0 < self.t_max < float("inf")):
            raise ValueError(f"t_min={self.t_min} and t_max={self.t_max}: 0 <= t_min <= t_max, and t_max above 0, "
                             "since positions are drawn")
        stability, confidence = self.stability_threshold, self.confidence_threshold
        if (stability is None) != (confidence is None):
            given = "stability_threshold" if confidence is None else "confidence_threshold"
            raise ValueError(f"{given}={getattr(self, given)} would be ignored: a block ends early by both, or by neither "
                             "(both None)")
        if stability is not None and (not isinstance(stability, int) or stability < 0):
            raise ValueError(f"stability_threshold={stability!r} must be a whole number of at least 0")
        if stability is not None and stability >= self.max_denoising_steps:
            raise ValueError(f"stability_threshold={stability} would be ignored: it is not reached within "
                             f"max_denoising_steps={self.max_denoising_steps}; None is no early end")
        if confidence is not None and not confidence > 0:
            raise ValueError(f"confidence_threshold={confidence} must be a number above 0")

    @classmethod
    def of_checkpoint(cls, generation_config: Any, canvas_length: int, **settings: Any) -> "UniformConfig":
        """The schedule of a checkpoint's own `generation_config`; `settings` go before it, defaults behind it."""
        known = {name: getattr(generation_config, name) for name in _SCHEDULE}
        if generation_config.sampler_config is not None:
            known["entropy_bound"] = generation_config.sampler_config.entropy_bound
        return cls(canvas_length, **{name: value for name, value in known.items() if value is not None} | settings)

    def blocks(self, block_length: int) -> int:
        """Number of blocks of this length; `ValueError` where it does not divide the canvas."""
        if self.canvas_length % block_length:
            raise ValueError(f"block_length={block_length} does not divide canvas_length={self.canvas_length}")
        return self.canvas_length // block_length

    def temperature(self, step: int) -> float:
        """The temperature of a block's denoising step, from 1."""
        left = (self.max_denoising_steps - step + 1) / self.max_denoising_steps
        return self.t_min + (self.t_max - self.t_min) * left


def entropy_bound(entropy_RC: torch.Tensor, bound: float) -> torch.Tensor:
    """Which positions are accepted: ascending, while the entropies before a position sum to at most `bound` nats."""
    ascending_RC, order_RC = entropy_RC.sort(dim=1, stable=True)
    within_RC = ascending_RC.cumsum(1) - ascending_RC <= bound
    return torch.zeros_like(within_RC).scatter_(1, order_RC, within_RC)


def invert_cdf(p_PV: torch.Tensor, u_P: torch.Tensor) -> torch.Tensor:
    """The token at which each row's cumulative distribution passes `u_P` in [0, 1), `(P,)`; never one of probability 0.

    Sums of chunks first, then within the one chunk: the vocabulary is read once and its cumulative sum, in float64,
    is never formed.
    """
    chunks = -(-p_PV.shape[1] // CHUNK)
    p_PKC = torch.nn.functional.pad(p_PV, (0, chunks * CHUNK - p_PV.shape[1])).view(-1, chunks, CHUNK)
    chunks_PK = p_PKC.sum(2, dtype=torch.double).cumsum(1)
    target_P = u_P.to(chunks_PK) * chunks_PK[:, -1]
    chunk_P = _passed(chunks_PK, target_P)
    before_P = chunks_PK.gather(1, (chunk_P - 1).clamp(min=0)[:, None])[:, 0] * (chunk_P > 0)
    within_PC = p_PKC[torch.arange(len(p_PKC), device=p_PKC.device), chunk_P].double().cumsum(1)
    return chunk_P * CHUNK + _passed(within_PC, target_P - before_P)


def _passed(cumulative_PK: torch.Tensor, target_P: torch.Tensor) -> torch.Tensor:
    """The first entry above the target, the last that adds anything where rounding put the target at the very end."""
    total_P1 = cumulative_PK[:, -1:]
    target_P1 = target_P[:, None].minimum(total_P1.nextafter(torch.zeros_like(total_P1)))
    return torch.searchsorted(cumulative_PK, target_P1, right=True)[:, 0]


@dataclass(frozen=True)
class _Row:
    prompt: int
    prompt_ids: list[int]
    seed: int


@torch.inference_mode()
def sample_uniform(
    denoiser: DiffusionGemmaDenoiser,
    prompts: Sequence[Prompt],
    config: UniformConfig,
    n: int = 1,
    seed: int | Sequence[int] = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Trajectory]:
    """Draws `n` trajectories of each prompt.

    Trajectory k of a prompt has the seed `derive_seed(seed, k)`, and its tokens depend on that seed, its prompt and the
    settings only (up to the rounding of the model's own arithmetic). A prompt is encoded once for all of
    its trajectories in a batch.

    In the trace a token is committed when it is accepted and taken back (an edit) when its position is renoised or
    accepts another one. So `commit_step` is the denoising step, counted through all blocks, since which the position has
    held its final token, and `canvas_at(step)` has None where the canvas held noise. The decoder's input is whole again with
    `noise(seeds_B, block, step, positions_C, vocabulary)` in these places, `step` counted from the block's start.
    Where a row did not go (after the block with its EOS) `canvas_ids` has the padding token.

    The ledger counts decoder and encoder passes. The first of a prompt's trajectories in a batch pays for the prompt.

    Args:
        denoiser: the model.
        prompts: texts, or token ids.
        config: the settings.
        n: trajectories per prompt.
        seed: any integer, or one for each prompt.
        progress: called with the number of trajectories that were just finished.

    Returns:
        Trajectories ordered by prompt, then by k.

    Raises `ValueError` for an empty prompt, `n` below 1, a wrong number of seeds, or a block that does not divide the
    canvas.
    """
    if n < 1:
        raise ValueError(f"n={n} trajectories per prompt: at least 1")
    block_length = config.block_length or denoiser.block_length
    config.blocks(block_length)
    encoded = iter(denoiser.encode([prompt for prompt in prompts if isinstance(prompt, str)]))
    ids = [next(encoded) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
    for i, prompt_ids in enumerate(ids):
        if not prompt_ids:
            raise ValueError(f"prompt {i} is empty")
    seeds = [seed] * len(ids) if isinstance(seed, int) else seed
    if len(seeds) != len(ids):
        raise ValueError(f"{len(seeds)} seeds for {len(ids)} prompts: one each, or a single one")
    rows = [_Row(i, prompt_ids, derive_seed(seeds[i], k)) for i, prompt_ids in enumerate(ids) for k in range(n)]
    shortest_first = sorted(range(len(rows)), key=lambda b: (len(rows[b].prompt_ids), b))  # little is padded
    results: dict[int, Trajectory] = {}
    for start in range(0, len(rows), config.batch_size):
        batch = shortest_first[start : start + config.batch_size]
        results.update(zip(batch, _sample(denoiser, [rows[b] for b in batch], config, block_length), strict=True))
        if progress is not None:
            progress(len(batch))
    return [results[b] for b in range(len(rows))]


def noise(seeds_B: torch.Tensor, block: int, step: int, positions_C: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """The random tokens `(B, C)` that the positions of a block hold after a denoising step (0: its start) as noise."""
    return (uniform(seeds_B, block, step, positions_C) * vocabulary).long()


class _State:
    """Tokens, trace and cost of a batch: all `(B, ...)` on the model's device."""

    def __init__(self, denoiser: DiffusionGemmaDenoiser, rows: list[_Row], length: int) -> None:
        shape, device = (len(rows), length), denoiser.device
        self.tokens_BG = torch.full(shape, denoiser.pad_id, device=device)
        self.held_BG = torch.zeros(shape, dtype=torch.bool, device=device)  # accepted, and not taken back since
        self.commit_step_BG = torch.full(shape, -1, device=device)
        self.confidence_BG = torch.zeros(shape, device=device)
        self.entropy_BG = torch.zeros(shape, device=device)
        self.block_BG = torch.full(shape, -1, device=device)
        self.edits: list[torch.Tensor] = []  # each (P, 5): row, step, position, token, commit_step
        self.seeds_B = torch.tensor([row.seed for row in rows], device=device)
        self.steps_B, self.passes_B, self.forwarded_B, self.shared_B = torch.zeros(4, len(rows), dtype=torch.long,
                                                                                   device=device)  # fmt: skip
        self.seconds_B = torch.zeros(len(rows), dtype=torch.double, device=device)

    def commit(self, rows_R: torch.Tensor, start: int, block: int, accepted_RC: torch.Tensor,
               token_RC: torch.Tensor) -> torch.Tensor:  # fmt: skip
        """Writes the accepted tokens of a step and takes back what they do not confirm.

        Returns a bool `(R, C)`: the positions whose token is new, whose snapshot is to be taken.
        """
        span = slice(start, start + accepted_RC.shape[1])
        held_RC, old_RC = self.held_BG[rows_R, span], self.tokens_BG[rows_R, span]
        confirmed_RC = held_RC & accepted_RC & (old_RC == token_RC)
        taken_back = (held_RC & ~confirmed_RC).nonzero(as_tuple=True)
        new_RC = accepted_RC & ~confirmed_RC
        row_P, position_P = rows_R[taken_back[0]], taken_back[1] + start
        self.edits.append(torch.stack([row_P, self.steps_B[row_P], position_P, old_RC[taken_back],
                                       self.commit_step_BG[row_P, position_P]], dim=1))  # fmt: skip
        row_P, position_P = new_RC.nonzero(as_tuple=True)
        at = (rows_R[row_P], position_P + start)
        self.commit_step_BG[at] = self.steps_B[at[0]]
        self.block_BG[at] = block
        self.tokens_BG[rows_R, span] = torch.where(accepted_RC, token_RC, old_RC)
        self.held_BG[rows_R, span] = accepted_RC
        return new_RC


def _sample(
    denoiser: DiffusionGemmaDenoiser, rows: list[_Row], config: UniformConfig, block_length: int
) -> list[Trajectory]:
    state = _State(denoiser, rows, config.canvas_length)
    eos = torch.tensor(denoiser.eos_ids, device=denoiser.device)
    running_B = torch.arange(len(rows), device=denoiser.device)
    began = time.perf_counter()
    prefix = _read(denoiser, rows, state)
    state.seconds_B += (time.perf_counter() - began) / len(rows)
    for block in range(config.blocks(block_length)):
        if block:
            began = time.perf_counter()
            last_BC = state.tokens_BG[running_B, (block - 1) * block_length : block * block_length]
            if config.stop_at_eos:
                open_B = (~torch.isin(last_BC, eos).any(1)).nonzero()[:, 0]
                if not len(open_B):
                    break
                if len(open_B) < len(running_B):
                    running_B, last_BC, prefix = running_B[open_B], last_BC[open_B], prefix.select(open_B)
            prefix = denoiser.extend(prefix, last_BC)
            state.passes_B[running_B] += 1
            state.forwarded_B[running_B] += block_length
            state.seconds_B[running_B] += (time.perf_counter() - began) / len(running_B)
        _denoise_block(denoiser, prefix, state, running_B, block, block_length, config)
    return _records(denoiser, rows, state, eos)


def _read(denoiser: DiffusionGemmaDenoiser, rows: list[_Row], state: _State) -> Prefix:
    """A prefix with one row for each of a batch, in which every prompt is encoded once."""
    first: dict[int, int] = {}
    for b, row in enumerate(rows):
        first.setdefault(row.prompt, b)
    place = {prompt: i for i, prompt in enumerate(first)}
    prefix = denoiser.read([rows[b].prompt_ids for b in first.values()])
    payers = torch.tensor(list(first.values()), device=denoiser.device)
    state.passes_B[payers] += 1
    state.forwarded_B[payers] += prefix.lengths_B
    state.shared_B += 1
    state.shared_B[payers] = 0
    if len(first) == len(rows):
        return prefix
    return prefix.select(torch.tensor([place[row.prompt] for row in rows], device=denoiser.device))


def _denoise_block(
    denoiser: DiffusionGemmaDenoiser, prefix: Prefix, state: _State, active_A: torch.Tensor, block: int,
    length: int, config: UniformConfig,
) -> None:  # fmt: skip
    """Denoises one block of the given rows (those of the prefix) to its end."""
    start = block * length
    position_C = torch.arange(start, start + length, device=denoiser.device)
    arguments = denoiser.decoder_arguments(prefix, length)
    canvas_AC = noise(state.seeds_B[active_A], block, 0, position_C, denoiser.vocabulary)
    likely_AC = torch.full_like(canvas_AC, -1)
    stable_A = torch.zeros_like(active_A)  # for how many steps the most likely tokens have not changed
    soft_ACD: torch.Tensor | None = None
    for step in range(1, config.max_denoising_steps + 1):
        began = time.perf_counter()
        hidden_ACD = denoiser.hidden(canvas_AC, soft_ACD, arguments)
        state.steps_B[active_A] += 1
        u_AC = uniform(state.seeds_B[active_A], block, step, position_C)
        ended_A = torch.ones_like(active_A, dtype=torch.bool)
        soft_ACD = torch.empty_like(hidden_ACD)
        for part in _slices(len(active_A), max(1, SLICE // (length * denoiser.vocabulary))):
            temperature = config.temperature(step)
            logits_RCV = denoiser.scaled_logits(hidden_ACD[part], temperature)
            peak_RC, top_RC = logits_RCV.max(-1)
            logits_RCV -= peak_RC[..., None]  # so that entropies near 0 are exact
            p_RCV = logits_RCV.softmax(-1)
            # -Σ p log p, where log p = logits + log p_top, since the top's logit is now 0.
            entropy_RC = -p_RCV.gather(-1, top_RC[..., None])[..., 0].log() - torch.einsum("rcv,rcv->rc", p_RCV, logits_RCV)

            stable_A[part] = torch.where((top_RC == likely_AC[part]).all(1), stable_A[part] + 1, 0)
            likely_AC[part] = top_RC
            if step < config.max_denoising_steps:
                ended_A[part] = _settled(stable_A[part], entropy_RC, config)
            # A row that ends takes the most likely token everywhere; another what it accepts, and noise elsewhere. As a
            # position is either accepted or renoised, one random number serves both.
            drawn_RC = entropy_bound(entropy_RC, config.entropy_bound) & ~ended_A[part, None]
            token_RC = top_RC.clone()
            token_RC[drawn_RC] = invert_cdf(p_RCV[drawn_RC], u_AC[part][drawn_RC])
            accepted_RC = drawn_RC | ended_A[part, None]
            new_RC = state.commit(active_A[part], start, block, accepted_RC, token_RC)
            _snapshot(state, active_A[part], start, new_RC, token_RC, logits_RCV[new_RC] * temperature)
            canvas_AC[part] = torch.where(accepted_RC, token_RC, (u_AC[part] * denoiser.vocabulary).long())
            if not ended_A[part].all():
                soft_ACD[part] = denoiser.soft_embeddings(p_RCV)
        state.passes_B[active_A] += 1
        state.forwarded_B[active_A] += length
        state.seconds_B[active_A] += (time.perf_counter() - began) / len(active_A)
        if ended_A.any():
            go_on = (~ended_A).nonzero()[:, 0]
            if not len(go_on):
                return
            prefix = prefix.select(go_on)
            arguments = denoiser.decoder_arguments(prefix, length)
            active_A, canvas_AC, soft_ACD = active_A[go_on], canvas_AC[go_on], soft_ACD[go_on]
            likely_AC, stable_A = likely_AC[go_on], stable_A[go_on]


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, length, size))


def _settled(stable_R: torch.Tensor, entropy_RC: torch.Tensor, config: UniformConfig) -> torch.Tensor:
    """`(R,)`: the rows whose block may end before its last step."""
    if config.stability_threshold is None or config.confidence_threshold is None:
        return torch.zeros_like(stable_R, dtype=torch.bool)
    return (stable_R >= config.stability_threshold) & (entropy_RC.mean(1) < config.confidence_threshold)


def _snapshot(
    state: _State, rows_R: torch.Tensor, start: int, new_RC: torch.Tensor, token_RC: torch.Tensor,
    logits_PV: torch.Tensor,
) -> None:  # fmt: skip
    """Notes confidence and entropy, at temperature 1, of the positions that have just received their token."""
    row_P, position_P = new_RC.nonzero(as_tuple=True)
    at = (rows_R[row_P], position_P + start)
    logp_PV = logits_PV.log_softmax(-1)
    state.confidence_BG[at] = logp_PV.gather(-1, token_RC[new_RC][:, None])[:, 0].exp()
    state.entropy_BG[at] = -torch.einsum("pv,pv->p", logp_PV.exp(), logp_PV)


def _records(denoiser: DiffusionGemmaDenoiser, rows: list[_Row], state: _State, eos: torch.Tensor) -> list[Trajectory]:
    canvas_BG, reached_BG = state.tokens_BG, state.held_BG
    eos_BG = torch.isin(canvas_BG, eos) & reached_BG
    end_B = torch.where(eos_BG.any(1), eos_BG.long().argmax(1), canvas_BG.shape[1]).tolist()
    edits: list[list[Edit]] = [[] for _ in rows]
    for b, step, position, token, commit_step in torch.cat(state.edits).tolist():
        edits[b].append(Edit(step, position, token, commit_step))
    canvas, steps, blocks = canvas_BG.tolist(), state.commit_step_BG.tolist(), state.block_BG.tolist()
    confidence, entropy = state.confidence_BG.tolist(), state.entropy_BG.tolist()
    passes, forwarded, shared = state.passes_B.tolist(), state.forwarded_B.tolist(), state.shared_B.tolist()
    seconds = state.seconds_B.tolist()
    texts = denoiser.decode([ids[:end] for ids, end in zip(canvas, end_B, strict=True)])
    return [
        Trajectory(
            prompt=row.prompt,
            seed=row.seed,
            prompt_ids=tuple(row.prompt_ids),
            canvas_ids=tuple(canvas[b]),
            length=min(end_B[b] + 1, len(canvas[b])),
            text=texts[b],
            finished=end_B[b] < len(canvas[b]),
            commit_step=tuple(steps[b]),
            confidence=tuple(confidence[b]),
            entropy=tuple(entropy[b]),
            block=tuple(blocks[b]),
            edits=tuple(edits[b]),
            ledger=Ledger(
                nfe=passes[b],
                tokens_forwarded=forwarded[b],
                sequential_steps=passes[b] + shared[b],
                seconds=seconds[b],
            ),
        )
        for b, row in enumerate(rows)
    ]
