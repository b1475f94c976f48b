"""The records that flow through every room: what a trajectory says, how it came about and what it cost."""

import dataclasses
from dataclasses import dataclass
from operator import add, attrgetter
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Ledger:
    """What something cost. Ledgers add: `a.then(b)` for work done after other work, `together` for work done beside.

    Attributes:
        nfe: forward passes of the diffusion model that a trajectory took part in, one for each row that it had in a batch.
        tokens_forwarded: tokens that were computed in those passes, padding left out. What several trajectories share
            is on the bill of the first.
        scorer_tokens: tokens read by a scoring model.
        solver_tokens: tokens read and written by the solver.
        sequential_steps: forward passes that had to wait for one another, of any model.
        seconds: wall-clock time; a batched pass is shared equally among its rows.
        forks: tokens that were committed below the threshold because nothing reached it.
        scorer_passes: forward passes of a scoring model that a trajectory took part in. Passes of the diffusion model are
            `nfe`, whatever they were for.
        solver_passes: forward passes of the model that wrote an answer or a plan; one a token, unless it checks its own
            drafts.
    """

    nfe: int = 0
    tokens_forwarded: int = 0
    scorer_tokens: int = 0
    solver_tokens: int = 0
    sequential_steps: int = 0
    seconds: float = 0.0
    forks: int = 0
    scorer_passes: int = 0
    solver_passes: int = 0

    @property
    def passes(self) -> int:
        """All forward passes, of any model, one for each row: what is spent, however much of it was side by side."""
        return self.nfe + self.scorer_passes + self.solver_passes

    def then(self, other: "Ledger") -> "Ledger":
        """The cost of this and, after it, the other."""
        return Ledger(*map(add, _costs(self), _costs(other)))

    @staticmethod
    def together(ledgers: "list[Ledger]") -> "Ledger":
        """The cost of several things that do not wait for one another: sums, but the longest chain of steps."""
        total = Ledger()
        for ledger in ledgers:
            total = total.then(ledger)
        longest = max((ledger.sequential_steps for ledger in ledgers), default=0)
        return dataclasses.replace(total, sequential_steps=longest)


_costs = attrgetter(*(field.name for field in dataclasses.fields(Ledger)))


class Edit(NamedTuple):
    """A token taken back: its position held it from `commit_step` until `step`, when it was reopened or replaced."""

    step: int
    position: int
    token: int
    commit_step: int


class Commit(NamedTuple):
    """A position's token and the denoising step that committed it; a fork was less certain than the threshold asks for."""

    position: int
    step: int
    fork: bool


@dataclass(frozen=True)
class Trajectory:
    """One denoised completion of one prompt, with its trace and its ledger.

    The trace has one entry per canvas position. `commit_step` is the denoising step (from 1) at which the position
    received the token that it ended with, 0 where it was given (pinned), -1 where the row stopped before it was reached;
    `confidence` is the snapshot confidence, the probability of the token at that moment under the un-noised softmax;
    `entropy` is the entropy of that softmax in nats; `block` is the block whose denoising committed it, -1 where
    `commit_step` is not positive. `edits` lists what was taken back on the way, in the order of steps, so that the
    trace replays every canvas of the run (`canvas_at`).

    Attributes:
        prompt: index of its prompt in the call.
        seed: the seed of its own noise.
        prompt_ids: tokens of the prompt.
        canvas_ids: tokens of the whole canvas; the mask token where `commit_step` is -1. Under `whole_blocks` it goes on to
            the end of a block, beyond what was asked for.
        length: tokens of the completion, up to and with its first EOS.
        text: the completion without special tokens.
        finished: whether it ended in EOS.
        commit_step, confidence, entropy, block, edits: the trace.
        ledger: the cost.
        forks: canvas positions whose token was committed below the threshold because nothing reached it; rising.
    """

    prompt: int
    seed: int
    prompt_ids: tuple[int, ...]
    canvas_ids: tuple[int, ...]
    length: int
    text: str
    finished: bool
    commit_step: tuple[int, ...]
    confidence: tuple[float, ...]
    entropy: tuple[float, ...]
    block: tuple[int, ...]
    edits: tuple[Edit, ...]
    ledger: Ledger
    forks: tuple[int, ...] = ()

    @property
    def commits(self) -> list[Commit]:
        """What was committed and stayed, in the order of steps and, within one, of positions."""
        forks = {*self.forks}
        made = [
            Commit(position, step, position in forks) for position, step in enumerate(self.commit_step) if step > 0
        ]
        return sorted(made, key=lambda commit: (commit.step, commit.position))

    @property
    def completion_ids(self) -> tuple[int, ...]:
        """The tokens up to and with the first EOS."""
        return self.canvas_ids[: self.length]

    @property
    def last_step(self) -> int:
        """The last denoising step that changed the canvas."""
        return max(0, *self.commit_step, *(edit.step for edit in self.edits))

    def canvas_at(self, step: int) -> list[int | None]:
        """The canvas after a denoising step, 0 being its start: a token id, or None where the position was masked."""
        canvas = [
            token if 0 <= since <= step else None
            for token, since in zip(self.canvas_ids, self.commit_step, strict=True)
        ]
        for edit in self.edits:
            if edit.commit_step <= step < edit.step:
                canvas[edit.position] = edit.token
        return canvas

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping from which `from_dict` restores the same record."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Trajectory":
        """The inverse of `to_dict`, also after a trip through JSON."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        fields["edits"] = tuple(Edit(*edit) for edit in fields["edits"])
        fields["ledger"] = Ledger(**fields["ledger"])
        return cls(**fields)
