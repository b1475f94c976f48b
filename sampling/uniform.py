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

import torch
from lockstitch.sampling.canvases import Look
from lockstitch.sampling.diffusion_gemma import DiffusionGemmaDenoiser, Prefix
from lockstitch.sampling.noise import derive_seed, uniform
from lockstitch.sampling.policies import entropy_bound
from lockstitch.sampling.trajectory import Trajectory
from lockstitch.sampling.uniform_config import UniformConfig
from lockstitch.sampling.uniform_trace import Row, State, records

Prompt = str | Sequence[int]
_Shown = tuple[Callable[[Look], None], Sequence[int]] | None  # who looks on, and the numbers of a batch's rows

SLICE = (
    2**24
)  # most logits held at a time (64 MB of float32, their probabilities the same), unless one row alone has more
CHUNK = 256  # tokens whose probabilities are summed first when a distribution is inverted


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


@torch.inference_mode()
def sample_uniform(
    denoiser: DiffusionGemmaDenoiser,
    prompts: Sequence[Prompt],
    config: UniformConfig,
    n: int = 1,
    seed: int | Sequence[int] = 0,
    progress: Callable[[int], None] | None = None,
    on_step: Callable[[Look], None] | None = None,
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
        on_step: called with the canvases of a batch before its first denoising step, and after each with those that the
            step worked on.

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
    rows = [Row(i, prompt_ids, derive_seed(seeds[i], k)) for i, prompt_ids in enumerate(ids) for k in range(n)]
    shortest_first = sorted(range(len(rows)), key=lambda b: (len(rows[b].prompt_ids), b))  # little is padded
    results: dict[int, Trajectory] = {}
    for start in range(0, len(rows), config.batch_size):
        batch = shortest_first[start : start + config.batch_size]
        shown = None if on_step is None else (on_step, batch)
        drawn = _sample(denoiser, [rows[b] for b in batch], config, block_length, shown)
        results.update(zip(batch, drawn, strict=True))
        if progress is not None:
            progress(len(batch))
    return [results[b] for b in range(len(rows))]


def noise(seeds_B: torch.Tensor, block: int, step: int, positions_C: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """The random tokens `(B, C)` that the positions of a block hold after a denoising step (0: its start) as noise."""
    return (uniform(seeds_B, block, step, positions_C) * vocabulary).long()


def _sample(
    denoiser: DiffusionGemmaDenoiser, rows: list[Row], config: UniformConfig, block_length: int, shown: _Shown
) -> list[Trajectory]:
    state = State(denoiser, rows, config.canvas_length)
    _show(state, torch.arange(len(rows), device=denoiser.device), shown)
    eos = torch.tensor(denoiser.eos_ids, device=denoiser.device)
    running_B = torch.arange(len(rows), device=denoiser.device)
    prefix = _read(denoiser, rows, state)
    for block in range(config.blocks(block_length)):
        if block:
            last_BC = state.tokens_BG[running_B, (block - 1) * block_length : block * block_length]
            if config.stop_at_eos:
                open_B = (~torch.isin(last_BC, eos).any(1)).nonzero()[:, 0]
                if not len(open_B):
                    break
                if len(open_B) < len(running_B):
                    running_B, last_BC, prefix = running_B[open_B], last_BC[open_B], prefix.select(open_B)
            began = time.perf_counter()
            prefix = denoiser.extend(prefix, last_BC)
            state.charge(running_B, block_length, time.perf_counter() - began)
        _denoise_block(denoiser, prefix, state, running_B, block, block_length, config, shown)
    return records(denoiser, rows, state)


def _show(state: State, rows_A: torch.Tensor, shown: _Shown) -> None:
    if shown is not None:
        on_step, numbers = shown
        on_step(state.look(rows_A, numbers))


def _read(denoiser: DiffusionGemmaDenoiser, rows: list[Row], state: State) -> Prefix:
    """A prefix with one row for each of a batch, in which every prompt is encoded once."""
    began = time.perf_counter()
    payer: dict[int, int] = {}  # prompt -> its first row
    for b, row in enumerate(rows):
        payer.setdefault(row.prompt, b)
    prefix = denoiser.read([rows[b].prompt_ids for b in payer.values()])
    state.shared_B += 1
    for b in payer.values():
        state.passes_B[b], state.forwarded_B[b], state.shared_B[b] = 1, len(rows[b].prompt_ids), 0
    if len(payer) < len(rows):
        place = {prompt: i for i, prompt in enumerate(payer)}
        prefix = prefix.select(torch.tensor([place[row.prompt] for row in rows], device=denoiser.device))
    state.seconds_B += (time.perf_counter() - began) / len(rows)
    return prefix


def _denoise_block(
    denoiser: DiffusionGemmaDenoiser,
    prefix: Prefix,
    state: State,
    active_A: torch.Tensor,
    block: int,
    length: int,
    config: UniformConfig,
    shown: _Shown,
) -> None:
    """Denoises one block of the given rows (those of the prefix) to its end."""
    position_C = torch.arange(block * length, (block + 1) * length, device=denoiser.device)
    arguments = denoiser.decoder_arguments(prefix, length)
    canvas_AC = noise(state.seeds_B[active_A], block, 0, position_C, denoiser.vocabulary)
    likely_AC = torch.full_like(canvas_AC, -1)
    stable_A = torch.zeros_like(active_A)  # for how many steps the most likely tokens have not changed
    soft_ACD: torch.Tensor | None = None
    for step in range(1, config.max_denoising_steps + 1):
        began = time.perf_counter()
        temperature = config.temperature(step)
        hidden_ACD = denoiser.hidden(canvas_AC, soft_ACD, arguments)
        state.steps_B[active_A] += 1
        u_AC = uniform(state.seeds_B[active_A], block, step, position_C)
        ended_A = torch.ones_like(active_A, dtype=torch.bool)  # so it is at the last step
        soft_ACD = torch.empty_like(hidden_ACD)
        for part in _slices(len(active_A), max(1, SLICE // (length * denoiser.vocabulary))):
            logits_RCV, p_RCV, top_RC, entropy_RC = _predict(denoiser, hidden_ACD[part], temperature)
            stable_A[part] = torch.where((top_RC == likely_AC[part]).all(1), stable_A[part] + 1, 0)
            likely_AC[part] = top_RC
            if step < config.max_denoising_steps:
                ended_A[part] = _settled(stable_A[part], entropy_RC, config)
            # A row that ends takes the most likely token everywhere; another what it accepts, and noise elsewhere. As a
            # position is either accepted or renoised, one random number serves both.
            open_RC = (~ended_A[part, None]).expand_as(entropy_RC)
            drawn_RC = entropy_bound(entropy_RC, open_RC, config.entropy_bound)
            token_RC = top_RC.clone()
            token_RC[drawn_RC] = invert_cdf(p_RCV[drawn_RC], u_AC[part][drawn_RC])
            accepted_RC = drawn_RC | ended_A[part, None]
            state.commit(active_A[part], block, accepted_RC, token_RC, logits_RCV, temperature)
            canvas_AC[part] = torch.where(accepted_RC, token_RC, (u_AC[part] * denoiser.vocabulary).long())
            if not ended_A[part].all():
                soft_ACD[part] = denoiser.soft_embeddings(p_RCV)
        state.charge(active_A, length, time.perf_counter() - began)
        _show(state, active_A, shown)
        if ended_A.any():
            go_on = (~ended_A).nonzero()[:, 0]
            if not len(go_on):
                return
            prefix = prefix.select(go_on)
            arguments = denoiser.decoder_arguments(prefix, length)
            active_A, canvas_AC, soft_ACD = active_A[go_on], canvas_AC[go_on], soft_ACD[go_on]
            likely_AC, stable_A = likely_AC[go_on], stable_A[go_on]


def _predict(
    denoiser: DiffusionGemmaDenoiser, hidden_RCD: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A step's prediction: logits (the largest is 0) and probabilities `(R, C, V)`, top token and entropy `(R, C)`."""
    logits_RCV = denoiser.scaled_logits(hidden_RCD, temperature)
    peak_RC, top_RC = logits_RCV.max(-1)
    logits_RCV -= peak_RC[..., None]  # so that entropies near 0 are exact
    p_RCV = logits_RCV.softmax(-1)
    # -Σ p log p, where log p = logits + log p_top, since the top's logit is 0.
    log_top_RC = p_RCV.gather(-1, top_RC[..., None])[..., 0].log()
    return logits_RCV, p_RCV, top_RC, -torch.einsum("rcv,rcv->rc", p_RCV, logits_RCV) - log_top_RC


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, length, size))


def _settled(stable_R: torch.Tensor, entropy_RC: torch.Tensor, config: UniformConfig) -> torch.Tensor:
    """`(R,)`: the rows whose block may end before its last step."""
    if config.stability_threshold is None or config.confidence_threshold is None:
        return torch.zeros_like(stable_R, dtype=torch.bool)
    return (stable_R >= config.stability_threshold) & (entropy_RC.mean(1) < config.confidence_threshold)
