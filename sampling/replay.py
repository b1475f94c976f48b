"""A trajectory's trace, replayed: what every canvas position shows at every denoising step.

The pictures (`terminal.py`, `page.py`) are drawn from this. Nothing of the model is needed, only the record: a
trajectory that was written to a file years ago replays as it did.
"""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from lockstitch.sampling.canvases import Look
from lockstitch.sampling.trajectory import Trajectory
from transformers import PreTrainedTokenizerBase as Tokenizer

_PART = "\ufffd"  # what a part of a character is decoded as
_LONGEST_RUN = (
    8  # tokens: a character has four bytes at most, and a token may hold the end of one and the start of another
)


class State(StrEnum):
    """What a position went through at a denoising step."""

    PINNED = "pinned"
    """Its token was given."""
    COMMITTED = "committed"
    """It received its token at an earlier step."""
    NOW = "now"
    """It received its token at this step."""
    REOPENED = "reopened"
    """Its token was taken back at this step."""
    MASKED = "masked"
    """It has no token."""


class Cell(NamedTuple):
    """A canvas position at a denoising step.

    `token` is None where there is none. `confidence` is the snapshot confidence, and `fork` whether the token was a fork,
    where the trace knows it: not of tokens that were taken back later.
    """

    state: State
    token: int | None
    confidence: float | None
    fork: bool = False


def cells_at(trajectory: Trajectory, step: int) -> list[Cell]:
    """The canvas after a denoising step, 0 being its start; as in `Trajectory.canvas_at`, with the states."""
    before, after = trajectory.canvas_at(step - 1), trajectory.canvas_at(step)
    since = [commit if 0 <= commit <= step else None for commit in trajectory.commit_step]
    final = [commit is not None for commit in since]
    for edit in trajectory.edits:
        if edit.commit_step <= step < edit.step:
            since[edit.position] = edit.commit_step
    cells, forks = [], {*trajectory.forks}
    for position, token in enumerate(after):
        if token is None:
            reopened = step > 0 and before[position] is not None
            cells.append(Cell(State.REOPENED if reopened else State.MASKED, None, None))
            continue
        commit = since[position]
        state = State.PINNED if commit == 0 else State.NOW if commit == step else State.COMMITTED
        known = final[position]
        cells.append(
            Cell(state, token, trajectory.confidence[position] if known else None, known and position in forks)
        )
    return cells


def cells_of(look: Look, a: int, before: Sequence[Cell]) -> list[Cell]:
    """The same of a canvas that is still being denoised: row `a` of a look, and the cells that it had at the one before."""
    step, length = int(look.step_A[a]), int(look.length_A[a])
    tokens, since = look.canvas_AG[a].tolist()[:length], look.commit_step_AG[a].tolist()
    confidence, fork = look.confidence_AG[a].tolist(), look.fork_AG[a].tolist()
    cells = []
    for position, token in enumerate(tokens):
        commit = since[position]
        if commit < 0:
            # A canvas that grew has no position that was taken back: growing goes with no correction.
            reopened = len(before) == length and before[position].token is not None
            cells.append(Cell(State.REOPENED if reopened else State.MASKED, None, None))
            continue
        state = State.PINNED if commit == 0 else State.NOW if commit == step else State.COMMITTED
        cells.append(Cell(state, token, confidence[position], fork[position]))
    return cells


def last_step(trajectories: Sequence[Trajectory]) -> int:
    """The last denoising step that changed any of the canvases."""
    return max(trajectory.last_step for trajectory in trajectories)


def token_ids(trajectory: Trajectory) -> set[int]:
    """Every token that stood on the canvas at any time, the mask token where a position was never reached included."""
    return {*trajectory.canvas_ids, *(edit.token for edit in trajectory.edits)}


def token_text(tokenizer: Tokenizer, *tokens: int) -> str:
    """What a token adds to a text, or several in a row: its characters, with the space that some tokenizers imply before.

    A token that is a part of a character alone gives U+FFFD.
    """
    # Twice and less once: alone, SentencePiece tokenizers would drop the space that the token brings along.
    once, twice = (tokenizer.decode([*tokens] * n, clean_up_tokenization_spaces=False) for n in (1, 2))
    text: str = twice[len(once) :] if twice.startswith(once) else once
    return text


def whole_characters(
    tokenizer: Tokenizer, tokens: Sequence[int | None], texts: Sequence[str]
) -> Iterator[tuple[int, int, str]]:
    """The runs of a canvas's tokens that make whole characters together and parts of them apart: start, stop, text.

    Args:
        tokenizer: the tokens'.
        tokens: those of the canvas, None where there is none.
        texts: what each alone shows.
    """
    i = 0
    while i < len(texts):
        run: list[int] = []
        for token in tokens[i : i + _LONGEST_RUN] if _PART in texts[i] else ():
            if token is None:
                break
            run.append(token)
            whole = token_text(tokenizer, *run)
            if len(run) > 1 and _PART not in whole:
                yield i, i + len(run), whole
                i += len(run) - 1
                break
        i += 1


def join_characters(tokenizer: Tokenizer, tokens: Sequence[int | None], texts: Sequence[str]) -> list[str]:
    """The texts of a canvas's tokens; characters that several tokens have parts of stand with the last of these, whole.

    Parts whose neighbours are still masked stay U+FFFD. The arguments are those of `whole_characters`.
    """
    joined = list(texts)
    for start, stop, whole in whole_characters(tokenizer, tokens, texts):
        joined[start:stop] = [*[""] * (stop - start - 1), whole]
    return joined
