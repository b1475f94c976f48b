"""Prompts in, trajectories out: what is asked for is checked, and goes into batches for the denoising loop."""

import warnings
from collections.abc import Callable, Sequence

from lockstitch.sampling.batching import batches
from lockstitch.sampling.canvases import Bans, Canvas, Look, Row
from lockstitch.sampling.compiled import check_compiled
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.denoising import Denoising
from lockstitch.sampling.drafting import Drafting
from lockstitch.sampling.layouts import check_layout, in_blocks_of
from lockstitch.sampling.noise import derive_seed
from lockstitch.sampling.trajectory import Trajectory

Prompt = str | Sequence[int]


def sample(
    denoiser: Denoiser,
    prompts: Sequence[Prompt],
    config: SamplerConfig,
    n: int = 1,
    seed: int | Sequence[int] = 0,
    canvases: Sequence[Canvas] | None = None,
    bans: Sequence[Bans] | None = None,
    progress: Callable[[int], None] | None = None,
    on_step: Callable[[Look], None] | None = None,
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
        on_step: called with the canvases of a batch before its first denoising step, and after each with those that the
            step worked on.

    Returns:
        Trajectories ordered by prompt, then by k.

    Raises `ValueError` for settings that do not fit the model's layout, an empty prompt, `n` below 1, a canvas of the wrong
    length or with the mask token, ids that are no tokens of the model, or a ban outside the canvas.
    """
    config = in_blocks_of(config, denoiser.family)
    rows = make_rows(denoiser, prompts, config, n, seed, canvases, bans)
    results: dict[int, Trajectory] = {}
    denoising = Drafting if config.policy == "verify" else Denoising
    with denoiser.without_graph():
        for batch in batches(rows, denoiser, config):
            results.update(
                zip(batch, denoising(denoiser, [rows[i] for i in batch], config, on_step, batch).run(), strict=True)
            )
            if progress is not None:
                progress(len(batch))
    return [results[i] for i in range(len(rows))]


def make_rows(
    denoiser: Denoiser,
    prompts: Sequence[Prompt],
    config: SamplerConfig,
    n: int,
    seed: int | Sequence[int],
    canvases: Sequence[Canvas] | None = None,
    bans: Sequence[Bans] | None = None,
) -> list[Row]:
    """One row for each trajectory that `sample` draws, in its order; checks what it checks."""
    check_layout(config, denoiser.family, denoiser.calling)
    if denoiser.compiled:
        check_compiled(config)
    if config.length != "fixed" and (canvases is not None or bans is not None):
        raise ValueError(
            f"canvases and bans speak of positions; under length={config.length!r} those move or are cut off: "
            "length='fixed'"
        )
    if n < 1:
        raise ValueError(f"n={n} trajectories per prompt: at least 1")
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    encoded = iter(denoiser.encode_prompts(texts))
    ids = [next(encoded) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
    if canvases is None:
        canvases = [[None] * config.canvas_length] * len(ids)
    if len(canvases) != len(ids):
        raise ValueError(f"{len(canvases)} canvases for {len(ids)} prompts: one each")
    canvases = [with_given(denoiser, i, *pair, config) for i, pair in enumerate(zip(prompts, canvases, strict=True))]
    for i, (prompt_ids, canvas) in enumerate(zip(ids, canvases, strict=True)):
        if not prompt_ids:
            raise ValueError(f"prompt {i} is empty")
        if len(canvas) != config.canvas_length:
            raise ValueError(f"canvas {i} has {len(canvas)} positions; canvas_length={config.canvas_length}")
        _check_tokens(denoiser, i, prompt_ids, canvas)
    _check_room(denoiser, ids, config)
    if n > 1 and config.temperature == 0 and config.policy != "random" and config.correction != "remdm":
        # The level is that of whoever calls `sample`.
        warnings.warn(f"n={n} at temperature=0: all {n} trajectories of a prompt will be equal", stacklevel=3)
    if bans is None:
        bans = [()] * len(ids)
    if len(bans) != len(ids):
        raise ValueError(f"{len(bans)} lists of bans for {len(ids)} prompts: one each")
    for i, pairs in enumerate(bans):
        for position, token in pairs:
            if not 0 <= position < config.canvas_length or token < 0:
                raise ValueError(
                    f"ban {(position, token)} of prompt {i}: a position below "
                    f"canvas_length={config.canvas_length} and a token id"
                )
    seeds = [seed] * len(ids) if isinstance(seed, int) else seed
    if len(seeds) != len(ids):
        raise ValueError(f"{len(seeds)} seeds for {len(ids)} prompts: one each, or a single one")
    return [
        Row(i, prompt_ids, derive_seed(seeds[i], k), canvas, bans[i])
        for i, (prompt_ids, canvas) in enumerate(zip(ids, canvases, strict=True))
        for k in range(n)
    ]


def with_given(denoiser: Denoiser, i: int, prompt: Prompt, canvas: Canvas, config: SamplerConfig) -> Canvas:
    """A canvas with what prompt `i` knows of its completion pinned on it, whatever else would stand there."""
    known = denoiser.given(prompt)
    if known is None:
        return canvas
    if len(known) != config.canvas_length or config.length != "fixed":
        raise ValueError(
            f"the completion of prompt {i} is known to have {len(known)} positions: canvas_length={config.canvas_length}, "
            f"length={config.length!r} would be another"
        )
    return [own if token is None else token for token, own in zip(known, canvas, strict=True)]


def _check_tokens(denoiser: Denoiser, i: int, prompt_ids: Sequence[int], canvas: Canvas) -> None:
    """Raises `ValueError` for ids that are no tokens of the model, and for a mask token that is pinned."""
    vocabulary = denoiser.model.config.get_text_config().vocab_size
    for what, ids in (("prompt", prompt_ids), ("canvas", canvas)):
        for position, token in enumerate(ids):
            if token is not None and not 0 <= token < vocabulary:
                raise ValueError(
                    f"{what} {i} holds {token} at position {position}, which is no token of the model: it has "
                    f"{vocabulary}"
                )
    if denoiser.mask_id in canvas:
        raise ValueError(
            f"canvas {i} pins the mask token {denoiser.mask_id} at position "
            f"{list(canvas).index(denoiser.mask_id)}; None is open"
        )


def _check_room(denoiser: Denoiser, ids: Sequence[Sequence[int]], config: SamplerConfig) -> None:
    """Raises `ValueError` for a prompt that leaves no room for its canvas in the positions that the model was made for."""
    longest = denoiser.longest
    if longest is None:
        return
    for i, prompt_ids in enumerate(ids):
        canvas = config.max_length or config.canvas_length
        if config.whole_blocks:
            canvas += -(len(prompt_ids) + canvas) % config.block
        if len(prompt_ids) + canvas > longest:
            raise ValueError(
                f"prompt {i} has {len(prompt_ids)} tokens and its canvas up to {canvas}: more than the "
                f"{longest} positions that the model was made for"
            )
