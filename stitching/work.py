"""What a worker of `lockstitch stitch` does: it loads the models, then turns portions of problems into rows of the results.

On a cluster the same work is cut into four stages, each with a pool of its own:

- `sampler`: draws the N trajectories, with the diffusion model.
- `scorer`: cuts them into steps and scores these.
- `stitcher`: runs every method but the solver's; it denoises again, so it has a diffusion model and a scorer too.
- `solver`: reads the evidence and answers. Without a solver it does not exist, nor `sampler` without a diffusion model.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lockstitch.rewards.tasks.named import get_task
from lockstitch.rewards.tasks.task import Task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loading import is_remote, load_tokenizer, read_config
from lockstitch.sampling.noise import derive_seed
from lockstitch.stitching import loading, method_names
from lockstitch.stitching.config import NONE, StitchConfig, solver_name
from lockstitch.stitching.evidence_model import EvidenceModel
from lockstitch.stitching.kept import KeptAnswers
from lockstitch.stitching.methods import Compare, Solve, StitchSettings
from lockstitch.stitching.pipeline import Sample, result_row
from lockstitch.stitching.pool import Tokenizes
from lockstitch.stitching.refine import Solver
from lockstitch.stitching.score import OF_DENOISER, Scorer, scorer_parts
from lockstitch.stitching.unchecked import unchecked

from lockstitch import embedded_model
from lockstitch.engine import Job, Portion, Row, Stage
from lockstitch.errors import without_passwords

State = dict[str, Any]  # one problem on its way
Batch = Mapping[str, Any]  # several, a list for each name


@dataclass
class Stitching:
    """Loads what the configuration names, each part when it is first asked for.

    Attributes:
        config: the command's.
        n: trajectories of each problem.
        directory: where the workers of this machine keep a solver's answers; actors of a cluster keep none.
    """

    config: StitchConfig
    n: int
    directory: Path | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Stitching, (self.config, self.n, self.directory)  # nothing that is loaded goes to a worker

    @cached_property
    def task(self) -> Task:
        """The task."""
        return get_task(self.config.task)

    @cached_property
    def judged_by(self) -> Task:
        """The task as its checker, or the scorer alone, finds steps sound."""
        return self.task if self.config.checker == "exact" else unchecked(self.task)

    @cached_property
    def sampling(self) -> tuple[Denoiser | None, SamplerConfig | None]:
        """The diffusion model with its settings, or None twice where trajectories come from elsewhere."""
        return loading.load_denoiser(self.config, self.task)

    @cached_property
    def scorer(self) -> Scorer:
        """The scorer."""
        scorer: Scorer = loading.load_scorer(self.config, self.task, self.sampling[0] if self.asks_denoiser else None)
        return scorer

    @property
    def asks_denoiser(self) -> bool:
        """Whether the scorer is the diffusion model's own, which it then needs whole."""
        return bool(OF_DENOISER.intersection(scorer_parts(self.config.scorer)))

    @cached_property
    def solver(self) -> Solver | None:
        """The solver, or None."""
        solver: Solver | None = loading.load_solver(self.config, self.task)
        return solver

    @property
    def settings(self) -> StitchSettings:
        """How evidence is chosen and refined."""
        config = self.config
        assert config.rule is not None, "it was fitted to the task"
        return StitchSettings(
            self.n,
            config.rule,
            config.delta,
            bool(config.rounds),
            config.round_width,
            config.round_temperature,
            config.rescore,
            tuple(name for name in self.asked if name not in self.absent),
            None if config.evidence_weights is None else EvidenceModel.read(config.evidence_weights),
        )

    @property
    def asked(self) -> tuple[str, ...]:
        """The methods that are asked for, whether or not they can run."""
        return method_names.USUAL if self.config.methods is None else tuple(self.config.methods)

    @property
    def samples(self) -> bool:
        """Whether there is a diffusion model."""
        return self.config.trajectories is None

    @property
    def solves(self) -> bool:
        """Whether there is a solver."""
        return solver_name(self.config, self.task) != NONE

    @property
    def absent(self) -> dict[str, str]:
        """The methods that cannot run, each with the reason; nothing is loaded."""
        return method_names.absent(
            samples=self.samples, solves=self.solves, comparing=self.config.comparing, methods=self.asked
        )

    @property
    def drawn_first(self) -> int:
        """How many trajectories at the head of a row were drawn before any round: what rounds add repeats what they pin."""
        in_rounds = bool(self.config.rounds) and "stitched" in self.asked
        return min(self.n, self.config.round_width or 1) if in_rounds else self.n

    def sample(self) -> Sample:
        """The stage of `lockstitch.stitching.pipeline` that draws and scores."""
        return Sample(self.judged_by, self.scorer, self.n, *self.sampling)

    def compare(self, solver: Solver | None) -> Compare:
        """The stage that runs all methods."""
        planner = loading.load_planner(self.config, self.task)
        return Compare(self.judged_by, self.scorer, self.settings, solver, *self.sampling, planner)

    def batch(self, portion: Portion) -> dict[str, Any]:
        """What the stages read of problems."""
        return {
            "index": [index for index, _ in portion],
            "given": [given for _, given in portion],
            "question": [given.problem.question for _, given in portion],
            "seed": [derive_seed(self.config.seed, index) for index, _ in portion],
            "completions": [given.completions for _, given in portion],
        }

    def rows(self, batch: Batch) -> list[Row]:
        """The rows of problems whose methods have run."""
        columns = zip(batch["index"], batch["given"], batch["compared"], strict=True)
        return [result_row(self.task, *column) for column in columns]

    def __call__(self) -> Callable[[Portion], Iterator[list[Row]]]:
        solver = self.solver
        if solver is not None and self.directory is not None:
            name = without_passwords(self.config.solver) if self.config.solver is not None else None
            solver = KeptAnswers(solver, self.directory, [str(name), self.task.name])
        sample, compare = self.sample(), self.compare(solver)

        def work(portion: Portion) -> Iterator[list[Row]]:
            compared = compare.each(sample(self.batch(portion)))
            for (index, given), one in zip(portion, compared, strict=True):
                yield [result_row(self.task, index, given, one)]

        return work

    def job(self) -> Job:
        """The work, whole and in stages."""
        on_accelerator = self.config.device != "cpu"
        of_model = ":" in self.config.scorer or (self.asks_denoiser and on_accelerator)
        names: list[tuple[str, type[_Step], bool]] = [("sampler", _Sampler, on_accelerator)] if self.samples else []
        names += [("scorer", _Scorer, of_model), ("stitcher", _Stitcher, self.samples and on_accelerator)]
        names += [("solver", _Solver, not str(self.config.solver).startswith("openai:"))] if self.solves else []
        return Job(
            self,
            tuple(
                Stage(name, kind(self, is_first=i == 0, is_last=i == len(names) - 1), model)
                for i, (name, kind, model) in enumerate(names)
            ),
        )


@dataclass(frozen=True)
class _Step:
    """One stage: problems in, the same with what it adds; pairs in where it is the first, rows out where it is the last."""

    of: Stitching
    is_first: bool
    is_last: bool

    def stage(self) -> Callable[[Batch], Batch]:
        """Loads it."""
        raise NotImplementedError

    def __call__(self) -> Callable[[list[Any]], list[Any]]:
        stage = self.stage()

        def of_list(states: list[Any]) -> list[Any]:
            batch = self.of.batch(states) if self.is_first else {name: [s[name] for s in states] for name in states[0]}
            done = stage(batch)
            if self.is_last:
                return self.of.rows(done)
            return [dict(zip(done, values, strict=True)) for values in zip(*done.values(), strict=True)]

        return of_list


class _Sampler(_Step):
    def stage(self) -> Callable[[Batch], Batch]:
        return Sample(self.of.judged_by, None, self.of.n, *self.of.sampling).draw


@dataclass(frozen=True)
class _Tokens:
    tokenizer: Any


class _Scorer(_Step):
    def stage(self) -> Callable[[Batch], Batch]:
        config = self.of.config
        reads: Tokenizes | None = self.of.sampling[0] if self.of.asks_denoiser else None
        if self.of.samples and reads is None:
            path = str(embedded_model(config.task) if config.model is None else config.model)
            trusted = config.trust_remote_code and is_remote(read_config(path, None))
            reads = _Tokens(load_tokenizer(path, trust_remote_code=trusted))
        return Sample(self.of.judged_by, self.of.scorer, self.of.n, reads).score


class _Stitcher(_Step):
    def stage(self) -> Callable[[Batch], Batch]:
        return self.of.compare(None).stitched


class _Solver(_Step):
    def stage(self) -> Callable[[Batch], Batch]:
        solver = self.of.solver
        assert solver is not None
        return Solve(self.of.judged_by, solver, self.of.settings)
