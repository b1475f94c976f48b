"""A Ray cluster that does the work: Ray Data streams portions through one pool of actors for each stage of the job.

An actor loads what its stage needs with its first portion. Portions go through the stages as they are, so that every row is
made beside the same others as by the local engine; Ray Data holds a stage back while the next one is behind. A portion whose
actor dies is given to another one. Between stages, problems travel as pickled bytes, as all of Ray's objects do: a cluster
is one user's own.

The actors need this package installed, and see the same files: a working directory of the same path is gone to, if there is
one. What tells libraries where models are (`HF_*`, `TRANSFORMERS_*`) and a server's `OPENAI_API_KEY` go with them.

Left out: Ray's own checkpoints; the rows that are on the caller's disk are those that are not made again.
"""

import logging
import os
import pickle
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lockstitch import cores
from lockstitch.engine import Job, Pool, Portion, Rows, Stage, places

logger = logging.getLogger(__name__)

_STORE = 200 * 2**20  # bytes of a cluster of this run's own for what is on its way: texts and traces
_MOST_TRIES = 3  # of a portion whose actor dies
_SENT = ("HF_", "TRANSFORMERS_", "OPENAI_API_KEY")


class ActorError(RuntimeError):
    """A mistake of the program's own in an actor, with the actor's traceback."""


def rows(job: Job, portions: Sequence[Portion], pools: Mapping[str, Pool], address: str | None) -> Rows:
    """Yields the rows of all portions as they are finished; see `lockstitch.engine.run`."""
    import pyarrow
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    with _cluster(address) as is_own:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus, gpus = shares(job.stages, pools, nodes, whole_machine=is_own)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        place, attempts = Place.here(), ray.remote(num_cpus=0, max_restarts=-1)(Attempts).remote()
        data = ray.data.from_arrow(
            [
                pyarrow.table({"portion": pyarrow.array([_packed(portion)], pyarrow.large_binary())})
                for portion in portions
            ]
        )
        for stage in job.stages:
            data = data.map_batches(
                Actor,
                fn_constructor_args=(_dumped(stage), place, attempts),
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=cpus,
                num_gpus=gpus[stage.name],
                compute=ActorPoolStrategy(size=pools[stage.name].actors),
            )
        try:
            for table in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for blob in table["portion"].to_pylist():
                    yield from _unpacked(blob)
        except ray.exceptions.RayError as error:
            raise ChildProcessError(f"the cluster gave up: {_last_line(error)}") from error


def _dumped(value: object) -> bytes:
    from ray import cloudpickle  # which takes what a script defines, too

    blob: bytes = cloudpickle.dumps(value)
    return blob


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _packed(portion: Portion) -> bytes:
    return _dumped(([place for place, _ in portion], list(portion), []))


def _named(indices: Sequence[int]) -> str:
    return places([(index, None) for index in indices])


def _unpacked(blob: bytes) -> Iterator[list[dict[str, Any]]]:
    """The rows of a portion that has been through all stages; raises what became of those that have not."""
    _, done, refused = pickle.loads(blob)
    yield done
    for kind, text in refused:
        if kind == "fault":
            raise ActorError(text)
        raise (ChildProcessError if kind == "deadly" else ValueError)(text)


@contextmanager
def _cluster(address: str | None) -> Iterator[bool]:
    """A cluster for the block, and whether it is new: the one that this process is in, a named one, or one of its own."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do soon, and says so each time
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # an error that is none is said of each pool of Ray Data's
    address = address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        yield False
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        if address is None:
            ray.init("local", num_cpus=cores.available(), object_store_memory=_STORE, include_dashboard=False, **quiet)
        else:
            ray.init(address, **quiet)
    except (ConnectionError, RuntimeError) as error:
        reason = _last_line(error.__cause__ or error)
        raise ConnectionError(f"no Ray cluster at {address or 'this machine'}: {reason}") from error
    try:
        yield address is None
    finally:
        ray.shutdown()


def shares(
    stages: Sequence[Stage], pools: Mapping[str, Pool], nodes: Sequence[Mapping[str, float]], *, whole_machine: bool
) -> tuple[float, dict[str, float]]:
    """The cores of each actor, and the GPUs of each stage's: all actors of all stages fit side by side, or none would end.

    Args:
        stages: of the job.
        pools: their actors.
        nodes: what each machine of the cluster has, `CPU` and `GPU`.
        whole_machine: whether actors may take all cores; otherwise one each, less where there are fewer.

    Raises:
        ValueError: fewer GPUs than are asked for, or no cores.
    """
    have = sum(node.get("GPU", 0.0) for node in nodes)
    gpus: dict[str, float] = {}
    for stage in stages:
        said = pools[stage.name].gpus
        gpus[stage.name] = float(bool(have) and stage.model) if said is None else said
    wanted = sum(gpus[stage.name] * pools[stage.name].actors for stage in stages)
    if wanted > have + 1e-9:
        said_so = ", ".join(f"{stage.name}={pools[stage.name].actors}x{gpus[stage.name]:g}" for stage in stages)
        raise ValueError(
            f"the pools ask for {wanted:g} GPUs side by side and the cluster has {have:g}; now they are "
            f"{said_so}: say --pools NAME=ACTORSxGPUS, parts of a GPU if need be"
        )
    count = sum(pools[stage.name].actors for stage in stages)
    machines = [node.get("CPU", 0.0) for node in nodes]
    parts = {machine / k for machine in machines for k in range(1, count + 1)} | {1.0}
    for part in sorted(parts, reverse=True):
        fits = part > 0 and sum(int(machine / part + 1e-6) for machine in machines) >= count
        if fits and (whole_machine or part <= 1):
            # Ray counts in whole cores, or in hundredths of one.
            return (float(int(part)) if part >= 1 else int(part * 100) / 100 or 0.01), gpus
    raise ValueError(f"the cluster has no cores for {count} actors")


@dataclass(frozen=True)
class Place:
    """Where the caller is, for actors to be there too."""

    directory: str
    path: tuple[str, ...]
    environment: Mapping[str, str]

    @classmethod
    def here(cls) -> "Place":
        """The place of this process."""
        sent = {name: value for name, value in os.environ.items() if name.startswith(_SENT)}
        return cls(os.getcwd(), tuple(sys.path), sent)

    def enter(self) -> None:
        """Goes there."""
        os.environ.update(self.environment)
        os.environ["TQDM_DISABLE"] = "1"  # the caller has a bar
        if os.path.isdir(self.directory):
            os.chdir(self.directory)
        here = (self.directory,) if os.path.isdir(self.directory) else ()
        sys.path += [folder for folder in (*self.path, *here) if folder not in sys.path]


class Attempts:
    """An actor that counts how often a portion was begun at a stage: Ray would give it to new actors for ever."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, int]] = Counter()

    def begin(self, stage: str, first: int) -> int:
        """Which attempt this is, from 1."""
        self.counts[stage, first] += 1
        return self.counts[stage, first]


class Actor:
    """A stage in an actor's process: batches of portions in, the same portions after the stage out."""

    def __init__(self, stage: bytes, place: Place, attempts: Any) -> None:
        place.enter()
        self.stage: Stage = pickle.loads(stage)
        self.attempts = attempts
        self.function: Callable[[list[Any]], list[Any]] | None = None

    def __call__(self, batch: Any) -> Any:
        """A table with a column `portion` of bytes."""
        import pyarrow

        blobs = [self.done(blob) for blob in batch["portion"].to_pylist()]
        return pyarrow.table({"portion": pyarrow.array(blobs, pyarrow.large_binary())})

    def done(self, blob: bytes) -> bytes:
        """One portion: places, what has become of them, and what went wrong so far."""
        indices, states, refused = pickle.loads(blob)
        if not states:
            return blob
        kept: list[tuple[int, Any]] = []
        attempt = self._attempt(indices[0])
        if attempt > _MOST_TRIES:
            text = f"{_named(indices)}: the actor of the {self.stage.name} died with these rows, {_MOST_TRIES} times"
            return pickle.dumps(([], [], [*refused, ("deadly", text)]))
        try:
            if self.function is None:
                self.function = self.stage.make()
        except (ValueError, OSError) as error:
            return pickle.dumps(([], [], [*refused, ("mistake", f"{self.stage.name}: {error}")]))
        except Exception:
            logger.debug("a stage was not loaded", exc_info=True)
            return pickle.dumps(([], [], [*refused, ("fault", f"{self.stage.name}\n\n{traceback.format_exc()}")]))
        self.work(indices, states, kept, refused)
        return pickle.dumps(([index for index, _ in kept], [state for _, state in kept], refused))

    def _attempt(self, first: int) -> int:
        import ray

        return int(ray.get(self.attempts.begin.remote(self.stage.name, first)))

    def work(self, indices: list[int], states: list[Any], kept: list[Any], refused: list[Any]) -> None:
        """Does the states at once or, where one is refused, one by one."""
        assert self.function is not None
        try:
            kept += zip(indices, self.function(states), strict=True)
        except (ValueError, OSError) as error:
            if isinstance(error, OSError):
                refused.append(("mistake", str(error)))
                return
            if len(states) == 1 or not self.stage.apart:
                refused.append(("mistake", f"{_named(indices)}: {error}"))
                return
            for place, state in zip(indices, states, strict=True):
                self.work([place], [state], kept, refused)
        except Exception:
            logger.debug("a portion failed", exc_info=True)
            refused.append(("fault", f"{_named(indices)}, {self.stage.name}\n\n{traceback.format_exc()}"))
