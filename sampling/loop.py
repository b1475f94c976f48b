"""The denoising loop: prompts in, trajectories out.

One loop runs every combination of the axes (see `SamplerConfig`). Rows are left-padded, so that the canvas stands in the
same columns everywhere; a forward pass holds only the rows whose block still has masks, and asks for the logits of that
block alone. Follows LLaDA's semi-autoregressive sampler (2502.09992, Sec. 2.4) and Fast-dLLM's threshold (2505.22618).

Axes: B rows in a batch, A of them active, L columns (padding, prompt, canvas), G canvas positions, N bans.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from lockstitch.sampling import policies
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.noise import derive_seed, uniform
from lockstitch.sampling.tokens import draw
from lockstitch.sampling.trajectory import Ledger, Trajectory

Prompt = str | Sequence[int]
Canvas = Sequence[int | None]
Bans = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class _Row:
    prompt: int
    prompt_ids: list[int]
    seed: int
    canvas: Canvas
    bans: Bans


@torch.inference_mode()
def sample(
    denoiser: Denoiser,
    prompts: Sequence[Prompt],
    config: SamplerConfig,
    n: int = 1,
    seed: int | Sequence[int] = 0,
    canvases: Sequence[Canvas] | None = None,
    bans: Sequence[Bans] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Trajectory]:
    """Draws `n` trajectories of each prompt.

    Trajectory k of a prompt has the seed `derive_seed(seed, k)`, and its tokens depend on that seed, its prompt, its canvas,
    its bans and the settings only: not on `n`, on the other prompts, or on `batch_size` (up to the rounding of
    the model's own arithmetic).

    Args:
        denoiser: the model.
        prompts: texts, or token ids.
        config: the settings.
        n: trajectories per prompt.
        seed: any integer, or one for each prompt.
        canvases: one initial canvas per prompt, `canvas_length` entries each: a token id where the position is pinned,
            None where it is to be denoised. None starts from an empty canvas.
        bans: per prompt, pairs of a canvas position and a token id that must not be committed there.
        progress: called with the number of trajectories that were just finished.

    Returns:
        Trajectories ordered by prompt, then by k.

    Raises `ValueError` for an empty prompt, `n` below 1, a canvas of the wrong length, or a ban outside the canvas.
    """
    if n < 1:
        raise ValueError(f"n={n} trajectories per prompt: at least 1")
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    encoded = iter(denoiser.encode(texts))
    ids = [next(encoded) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
    if canvases is None:
        canvases = [[None] * config.canvas_length] * len(ids)
    if len(canvases) != len(ids):
        raise ValueError(f"{len(canvases)} canvases for {len(ids)} prompts: one each")
    for i, (prompt_ids, canvas) in enumerate(zip(ids, canvases, strict=True)):
        if not prompt_ids:
            raise ValueError(f"prompt {i} is empty")
        if len(canvas) != config.canvas_length:
            raise ValueError(f"canvas {i} has {len(canvas)} positions; canvas_length={config.canvas_length}")
    if bans is None:
        bans = [()] * len(ids)
    if len(bans) != len(ids):
        raise ValueError(f"{len(bans)} lists of bans for {len(ids)} prompts: one each")
    for i, pairs in enumerate(bans):
        for position, token in pairs:
            if not 0 <= position < config.canvas_length or token < 0:
                raise ValueError(f"ban {(position, token)} of prompt {i}: a position below "
                                 f"canvas_length={config.canvas_length} and a token id")
    seeds = [seed] * len(ids) if isinstance(seed, int) else seed
    if len(seeds) != len(ids):
        raise ValueError(f"{len(seeds)} seeds for {len(ids)} prompts: one each, or a single one")
    rows = [
        _Row(i, prompt_ids, derive_seed(seeds[i], k), canvas, bans[i])
        for i, (prompt_ids, canvas) in enumerate(zip(ids, canvases, strict=True))
        for k in range(n)
    ]
    results: dict[int, Trajectory] = {}
    for batch in _batches(rows, config.batch_size, same_length=not denoiser.family.honours_mask):
        results.update(zip(batch, _denoise(denoiser, [rows[i] for i in batch], config), strict=True))
        if progress is not None:
            progress(len(batch))
    return [results[i] for i in range(len(rows))]


def _batches(rows: list[_Row], size: int, same_length: bool) -> Iterator[list[int]]:
    """Indices of rows, shortest prompts first so that little is padded; of one length where the model ignores masks."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].prompt_ids), i))
    batch: list[int] = []
    for i in order:
        other_length = batch and len(rows[batch[0]].prompt_ids) != len(rows[i].prompt_ids)
        if len(batch) == size or (same_length and other_length):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


class _Canvases:
    """The state of a batch: tokens, masks and trace, all `(B, ...)` on the model's device."""

    def __init__(self, denoiser: Denoiser, rows: list[_Row], length: int) -> None:
        device, B = denoiser.device, len(rows)
        self.width = max(len(row.prompt_ids) for row in rows)
        ids_BL = torch.full((B, self.width + length), denoiser.pad_id)
        attention_BL = torch.ones_like(ids_BL)
        for b, row in enumerate(rows):
            pad = self.width - len(row.prompt_ids)
            attention_BL[b, :pad] = 0
            ids_BL[b, pad : self.width] = torch.tensor(row.prompt_ids)
            ids_BL[b, self.width :] = torch.tensor([denoiser.mask_id if t is None else t for t in row.canvas])
        self.ids_BL, self.attention_BL = ids_BL.to(device), attention_BL.to(device)
        pinned_BG = torch.tensor([[token is not None for token in row.canvas] for row in rows], device=device)
        self.masked_BG = ~pinned_BG
        self.commit_step_BG = torch.where(pinned_BG, 0, -1)
        self.confidence_BG = pinned_BG.float()
        self.entropy_BG = torch.zeros(B, length, device=device)
        self.block_BG = torch.full((B, length), -1, device=device)
        pairs = [(b, position, token) for b, row in enumerate(rows) for position, token in row.bans]
        self.bans_N3 = torch.tensor(pairs, dtype=torch.long, device=device).view(-1, 3)
        self.seeds_B = torch.tensor([row.seed for row in rows], device=device)
        self.running_B = torch.ones(B, dtype=torch.bool, device=device)
        self.nfe_B = torch.zeros(B, dtype=torch.long, device=device)
        self.seconds_B = torch.zeros(B, dtype=torch.double, device=device)

    @property
    def canvas_BG(self) -> torch.Tensor:
        """A view of the canvas columns."""
        return self.ids_BL[:, self.width :]

    def ban(self, logits_ALV: torch.Tensor, active_A: torch.Tensor, start: int, stop: int) -> None:
        """Sets the logits of what the active rows must not commit in columns `start:stop` of the canvas."""
        row_N, position_N, token_N = self.bans_N3.unbind(1)
        slot_B = torch.full((len(self.ids_BL),), -1, device=active_A.device)
        slot_B[active_A] = torch.arange(len(active_A), device=active_A.device)
        here_N = (slot_B[row_N] >= 0) & (position_N >= start) & (position_N < stop)
        logits_ALV[slot_B[row_N[here_N]], position_N[here_N] - start, token_N[here_N]] = -torch.inf


def _first_eos(canvas_BG: torch.Tensor, masked_BG: torch.Tensor, eos_ids: list[int]) -> torch.Tensor:
    """`(B,)`: the position of each row's first committed EOS, G where there is none."""
    eos_BG = torch.isin(canvas_BG, torch.tensor(eos_ids, device=canvas_BG.device)) & ~masked_BG
    return torch.where(eos_BG.any(1), eos_BG.long().argmax(1), canvas_BG.shape[1])


def _denoise(denoiser: Denoiser, rows: list[_Row], config: SamplerConfig) -> list[Trajectory]:
    state = _Canvases(denoiser, rows, config.canvas_length)
    forbidden = [denoiser.mask_id]
    if denoiser.pad_id not in denoiser.eos_ids and denoiser.pad_id != denoiser.mask_id:
        forbidden.append(denoiser.pad_id)
    column_G = torch.arange(config.canvas_length, device=denoiser.device)
    steps_per_block = config.total_steps // config.blocks

    def stop_finished() -> None:
        if config.stop_at_eos:
            end_B = _first_eos(state.canvas_BG, state.masked_BG, denoiser.eos_ids)
            open_B = (state.masked_BG & (column_G < end_B[:, None])).any(1)
            state.running_B &= open_B | (end_B == config.canvas_length)

    stop_finished()  # a pinned canvas may hold its EOS already
    for block in range(config.blocks):
        start, stop = block * config.block, (block + 1) * config.block
        initial_B = state.masked_BG[:, start:stop].sum(1)
        # Pinned positions shorten the block's schedule in proportion, so that tokens per step stay what was asked for.
        steps_B = (initial_B * steps_per_block + config.block - 1) // config.block
        step = 0
        while True:
            active_A = (state.running_B & state.masked_BG[:, start:stop].any(1)).nonzero()[:, 0]
            if not len(active_A):
                break
            began = time.perf_counter()
            logits = denoiser.canvas_logits(
                state.ids_BL[active_A], state.attention_BL[active_A], state.width + start, state.width + stop
            )
            state.ban(logits, active_A, start, stop)
            noise = None
            if config.temperature > 0:
                noise = uniform(state.seeds_B[active_A], block, step, column_G[start:stop])
            token, confidence, entropy = draw(logits, noise, config.temperature, forbidden)
            masked = state.masked_BG[active_A, start:stop]
            if config.policy == "quota":
                count = policies.quota_count(initial_B[active_A], step, steps_B[active_A])
                commit = policies.quota(confidence, masked, count)
            else:
                assert config.threshold is not None
                commit = policies.threshold(confidence, masked, config.threshold)
            state.nfe_B[active_A] += 1
            row, position = commit.nonzero(as_tuple=True)
            at = (active_A[row], position + start)
            state.canvas_BG[at] = token[row, position]
            state.masked_BG[at] = False
            state.commit_step_BG[at] = state.nfe_B[at[0]]
            state.confidence_BG[at] = confidence[row, position]
            state.entropy_BG[at] = entropy[row, position]
            state.block_BG[at] = block
            state.seconds_B[active_A] += (time.perf_counter() - began) / len(active_A)
            stop_finished()
            step += 1
    return _records(denoiser, rows, state)


def _records(denoiser: Denoiser, rows: list[_Row], state: _Canvases) -> list[Trajectory]:
    G = state.canvas_BG.shape[1]
    end_B = _first_eos(state.canvas_BG, state.masked_BG, denoiser.eos_ids).tolist()
    canvas, steps = state.canvas_BG.tolist(), state.commit_step_BG.tolist()
    confidence, entropy = state.confidence_BG.tolist(), state.entropy_BG.tolist()
    blocks = state.block_BG.tolist()
    nfe, seconds = state.nfe_B.tolist(), state.seconds_B.tolist()
    texts = denoiser.decode([ids[:end] for ids, end in zip(canvas, end_B, strict=True)])
    return [
        Trajectory(
            prompt=row.prompt,
            seed=row.seed,
            prompt_ids=tuple(row.prompt_ids),
            canvas_ids=tuple(canvas[b]),
            length=min(end_B[b] + 1, G),
            text=texts[b],
            finished=end_B[b] < G,
            commit_step=tuple(steps[b]),
            confidence=tuple(confidence[b]),
            entropy=tuple(entropy[b]),
            block=tuple(blocks[b]),
            edits=(),
            ledger=Ledger(
                nfe=nfe[b],
                tokens_forwarded=nfe[b] * (len(row.prompt_ids) + G),
                sequential_steps=nfe[b],
                seconds=seconds[b],
            ),
        )
        for b, row in enumerate(rows)
    ]
