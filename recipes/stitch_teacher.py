"""Stitching as a teacher of reinforcement learning: a group's rollouts are stitched, and the policy learns from the result.

    lockstitch grpo --config tiny/sudoku.yaml --stitch_teacher join

The group's completions are cut into steps and scored, and the best chain through them is found as `lockstitch stitch` finds
it. Steps of the chain that score at least delta are pinned on a canvas, and the policy denoises the rest. A group that fails
as a whole may hold the right steps all the same: then it has a right member after all, or something to imitate.

For a member of a group (`join`, `replace`) at most a share of the chain is pinned, first what most of the group wrote: what
is left open is what the group finds hard, and only what is drawn can be learned. For a target all that stands is pinned.
Groups whose every completion stands have no lesson. `best_of_n` stitches nothing: the target is the member with the highest
reward (rejection sampling: RAFT, 2304.06767).

This is where `rl` and `stitching` meet: neither knows the other. What lessons do in training: `lockstitch.rl.teaching`.

Axes: K trajectories of a group, N steps of one.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lockstitch.rewards.tasks.task import Task
    from lockstitch.rl.teaching import Group, Lesson, Teaching
    from lockstitch.sampling.config import SamplerConfig
    from lockstitch.sampling.denoiser import Denoiser
    from lockstitch.sampling.trajectory import Ledger
    from lockstitch.stitching.score import Scorer
    from lockstitch.stitching.steps import Clue

ROLES = ("join", "replace", "target", "only")
METHODS = ("stitched", "best_of_n")


@dataclass
class StitchTeacherArguments:
    """Whether stitched completions teach, and how they are made."""

    stitch_teacher: str | None = field(
        default=None,
        metadata={
            "help": "Stitch each group's rollouts and learn from the result: join (one more member of the group), replace "
            "(in the place of its worst), target (a supervised term beside the policy loss) or only (that term "
            "alone). Needs a task."
        },
    )
    stitch_method: str | None = field(
        default=None,
        metadata={
            "help": "What a target is: stitched, or best_of_n, the rollout with the highest reward. None is stitched."
        },
    )
    stitch_scorer: str | None = field(
        default=None,
        metadata={
            "help": "What scores the steps of rollouts, as in `lockstitch stitch`: calculator (the task's checker), "
            "consensus, confidence, prm:MODEL, ... None is calculator. Any other judges alone, without the checker."
        },
    )
    stitch_delta: float | None = field(
        default=None, metadata={"help": "Steps that score at least this are pinned; None is 0.9."}
    )
    stitch_share: float | None = field(
        default=None,
        metadata={"help": "Most steps of a chain that are pinned, as a share (join, replace); None is 0.5."},
    )
    stitch_weight: float | None = field(
        default=None, metadata={"help": "Weight of the supervised term (target, only); None is 1."}
    )

    def check_teacher(self, task: str | None) -> None:
        """Raises `ValueError` for a value that is none, and for options that the others would ignore."""
        role, method = self.stitch_teacher, self.stitch_method or METHODS[0]
        if role is None:
            for name in ("stitch_method", "stitch_scorer", "stitch_delta", "stitch_share", "stitch_weight"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}={getattr(self, name)!r} would be ignored: stitch_teacher=None")
            return
        if role not in ROLES:
            raise ValueError(f"stitch_teacher={role!r} is not one of {', '.join(ROLES)}")
        if method not in METHODS:
            raise ValueError(f"stitch_method={method!r} is not one of {', '.join(METHODS)}")
        if task is None:
            raise ValueError(f"stitch_teacher={role!r} needs a task, which says what a step is: task=None")
        member, best = role in ("join", "replace"), method == "best_of_n"
        if member and best:
            raise ValueError(
                f"stitch_method='best_of_n' is for target and only: under {role!r} it is in its group already"
            )
        ignored = {
            "stitch_scorer": "stitch_method='best_of_n' asks the rewards" if best else None,
            "stitch_delta": "stitch_method='best_of_n' pins nothing" if best else None,
            "stitch_share": None if member else f"stitch_teacher={role!r} pins all that stands",
            "stitch_weight": f"stitch_teacher={role!r} has no supervised term" if member else None,
        }
        for name, why in ignored.items():
            if why is not None and getattr(self, name) is not None:
                raise ValueError(f"{name}={getattr(self, name)!r} would be ignored: {why}")
        if self.stitch_delta is not None and not 0 <= self.stitch_delta <= 1:
            raise ValueError(f"stitch_delta={self.stitch_delta} must lie between 0 and 1, as scores do")
        if self.stitch_share is not None and not 0 < self.stitch_share < 1:
            raise ValueError(f"stitch_share={self.stitch_share} must lie between 0 and 1, both left out")
        if self.stitch_weight is not None and not self.stitch_weight > 0:
            raise ValueError(f"stitch_weight={self.stitch_weight} must be positive")


def teaching_of(arguments: StitchTeacherArguments, task: "Task | None") -> "Teaching | None":
    """The trainer's teacher, or None. Raises `ValueError` for a scorer that does not exist or that the task cannot use."""
    from lockstitch.rl.teaching import Teaching

    role = arguments.stitch_teacher
    if role is None:
        return None
    assert task is not None, "check_teacher has seen it"
    weight = 1.0 if arguments.stitch_weight is None else arguments.stitch_weight
    if arguments.stitch_method == "best_of_n":
        return Teaching(best_of_n, role, weight)
    share = None if role in ("target", "only") else 0.5 if arguments.stitch_share is None else arguments.stitch_share
    delta = 0.9 if arguments.stitch_delta is None else arguments.stitch_delta
    return Teaching(StitchTeacher(task, arguments.stitch_scorer or "calculator", delta, share), role, weight)


def best_of_n(denoiser: "Denoiser", config: "SamplerConfig", groups: "Sequence[Group]") -> "list[Lesson]":
    """Each group's rollout with the highest reward, of equals one that ends, the first of these; at no cost."""
    from dataclasses import replace

    from lockstitch.rl.teaching import Lesson
    from lockstitch.sampling.trajectory import Ledger

    lessons = []
    for group in groups:
        known = [k for k, reward in enumerate(group.rewards) if reward == reward]
        best = max(known, key=lambda k: (group.rewards[k], group.trajectories[k].finished)) if known else None
        lessons.append(Lesson(None if best is None else replace(group.trajectories[best], ledger=Ledger())))
    return with_ends(lessons, groups)


def with_ends(lessons: "Sequence[Lesson]", groups: "Sequence[Group]") -> "list[Lesson]":
    """The lessons, but none where one does not end, if any rollout does."""
    from dataclasses import replace

    ends = any(t.finished for group in groups for t in group.trajectories)
    return [
        replace(one, trajectory=None, cost=one.cost.then(one.trajectory.ledger))
        if ends and one.trajectory is not None and not one.trajectory.finished
        else one
        for one in lessons
    ]


class StitchTeacher:
    """Stitches each group and denoises what is left open.

    Args:
        task: says what a step is, and checks chains where the scorer is `calculator`.
        scorer: as `lockstitch.stitching.score.load_scorer` names them.
        delta: steps that score at least this are pinned.
        share: most steps of a chain that are pinned, as a share; None pins all that stands.

    Raises `ValueError` for a scorer that does not exist, or that the task cannot use.
    """

    def __init__(self, task: "Task", scorer: str, delta: float, share: float | None) -> None:
        from lockstitch.stitching.score import OF_DENOISER, TRACED, load_scorer, scorer_parts
        from lockstitch.stitching.unchecked import unchecked

        self.task = task if scorer == "calculator" else unchecked(task)
        self.spec, self.delta, self.share = scorer, delta, share
        parts = scorer_parts(scorer)
        self._reads_tokens = bool(TRACED.intersection(parts))
        self._scorer = None if OF_DENOISER.intersection(parts) else load_scorer(scorer, task)

    def __call__(self, denoiser: "Denoiser", config: "SamplerConfig", groups: "Sequence[Group]") -> "list[Lesson]":
        """A lesson for each group, with what scoring it cost; see `lockstitch.rl.teaching.Teaching`."""
        from lockstitch.rl.teaching import Lesson
        from lockstitch.sampling.loop import sample
        from lockstitch.stitching.canvas import pin_chain
        from lockstitch.stitching.score import load_scorer

        scorer = self._scorer or load_scorer(self.spec, self.task, denoiser=denoiser, batch_size=config.batch_size)
        chains = [self._chain(denoiser, scorer, group) for group in groups]
        pinned = [self._pinned(chain) for chain, _ in chains]
        asked = [i for i, places in enumerate(pinned) if places]
        canvases = [pin_chain(denoiser, self.task, chains[i][0], pinned[i], config.canvas_length) for i in asked]
        drawn = sample(
            denoiser,
            [groups[i].trajectories[0].prompt_ids for i in asked],
            config,
            seed=[groups[i].seed for i in asked],
            canvases=canvases,
        )
        lessons = [Lesson(None, cost) for _, cost in chains]
        for i, trajectory in zip(asked, drawn, strict=True):
            lessons[i] = Lesson(trajectory, chains[i][1])
        return with_ends(lessons, groups) if self.share is None else lessons

    def _chain(self, denoiser: "Denoiser", scorer: "Scorer", group: "Group") -> "tuple[tuple[Clue, ...], Ledger]":
        """The best chain through a group's steps, none where all of its completions stand; and what scoring them cost."""
        from lockstitch.rewards.steps import NoChecker
        from lockstitch.sampling.trajectory import Ledger
        from lockstitch.stitching.pool import Pool
        from lockstitch.stitching.rounds import own_chain, stands
        from lockstitch.stitching.segment import steps_of, token_spans
        from lockstitch.stitching.stitch import best_path

        task, question = self.task, self.task.read_row(group.row).question
        steps_KN = [
            steps_of(
                t.text,
                task.unit,
                k,
                token_spans(denoiser.tokenizer, t.completion_ids) if self._reads_tokens else None,
            )
            for k, t in enumerate(group.trajectories)
        ]
        if not any(steps_KN):
            return (), Ledger()
        began = time.perf_counter()
        scores = scorer(question, steps_KN, group.trajectories)
        cost = scores.cost(time.perf_counter() - began)
        pool = Pool(
            question, [t.text for t in group.trajectories], list(group.trajectories), steps_KN, scores.score_KN
        )
        if all(stands(task, question, own_chain(task, pool, k), self.delta) for k in range(len(steps_KN))):
            return (), cost
        checker: Any = task.checker or NoChecker()
        return best_path(question, checker, steps_KN, scores.score_KN, self.delta).chain, cost

    def _pinned(self, chain: "Sequence[Clue]") -> set[int]:
        """The places of a chain that are pinned: of those that stand the ones that most trajectories wrote."""
        standing = [place for place, clue in enumerate(chain) if clue.score >= self.delta]
        if self.share is None:
            return set(standing)
        standing.sort(key=lambda place: (-len({k for k, _ in chain[place].sources}), place))
        most = min(max(1, int(self.share * len(chain))), len(chain) - 1)
        return set(standing[:most])
