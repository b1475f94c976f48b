"""Rows made by one process, by several of one machine, or by a Ray cluster: the same rows, in one results file.

A command says what there is to do as a `Job`: items with their places, and how a worker that has loaded its models turns a
portion of them into rows. Who does that is the engine's affair:

- `local` with one worker: this process (below).
- `local` with N workers: N processes of this machine (`engine_local.py`).
- `ray`: actors of a cluster, a pool of them for each stage of the job (`engine_ray.py`).

Rows may be finished in any order. The results file holds them in order all the same, and a row that is finished before its
turn waits in a file beside it, so that a run that is stopped loses no finished row and repeats none. A run may be begun by
one engine and go on with another.

Left out: sharing one results file between several commands.
"""

import argparse
import logging
import math
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lockstitch.errors import OthersCodeError
from lockstitch.files import AHEAD, append_rows, finished_rows

logger = logging.getLogger(__name__)

Row = dict[str, Any]
Portion = Sequence[tuple[int, Any]]  # places and items, places one after another
Work = Callable[[Portion], Iterable[list[Row]]]  # rows with their `index`, as they are finished, in any order
Make = Callable[[], Any]
Rows = Generator[list[Row], None, None]
Progress = Callable[[int], None]

LOCAL, RAY = "local", "ray"
_POOL = re.compile(r"(?P<name>\w+)=(?P<actors>\d+)(?:x(?P<gpus>\d*\.?\d+))?")


@dataclass(frozen=True)
class Pool:
    """The actors of a stage, and the GPUs of each: None is one where the stage has a model and the cluster has GPUs."""

    actors: int
    gpus: float | None = None


@dataclass
class EngineOptions:
    """Who does the work; none of it changes a result."""

    workers: int = field(
        default=1,
        metadata={
            "help": "Processes that share the work, each with models of its own and its part of the cores; "
            "with --engine ray, actors of each stage. Default: 1."
        },
    )
    engine: str = field(default=LOCAL, metadata={"help": "local (default), or ray: a cluster (extra 'ray')."})
    pools: str | None = field(
        default=None,
        metadata={
            "help": "Ray: actors of single stages, NAME=ACTORS or NAME=ACTORSxGPUS, GPUS of each, with "
            "commas between: sampler=4,solver=1x0.5."
        },
    )
    ray_address: str | None = field(
        default=None,
        metadata={"help": "Ray: the cluster. Default: RAY_ADDRESS, else one that is started for this run."},
    )

    def __post_init__(self) -> None:
        if type(self.workers) is not int or self.workers < 1:
            raise ValueError(f"workers={self.workers!r} must be a whole number of at least 1")
        if self.engine not in (LOCAL, RAY):
            raise ValueError(f"engine={self.engine!r} is not one of {LOCAL}, {RAY}")
        for name in ("pools", "ray_address"):
            if getattr(self, name) is not None and self.engine != RAY:
                raise ValueError(f"{name}={getattr(self, name)!r} would be ignored without --engine ray")
        if self.engine == RAY and find_spec("ray") is None:
            raise ValueError("engine='ray' needs Ray, which is not installed: pip install 'lockstitch[ray]'")
        self.said_pools()

    @property
    def alone(self) -> bool:
        """Whether this process does the work itself."""
        return self.engine == LOCAL and self.workers == 1

    def said_pools(self) -> dict[str, Pool]:
        """What `pools` says; `ValueError` for what it cannot mean."""
        found: dict[str, Pool] = {}
        for text in (self.pools or "").split(",") if self.pools is not None else ():
            match = _POOL.fullmatch(text.strip())
            if match is None or int(match["actors"]) < 1:
                raise ValueError(f"pools={self.pools!r}: {text!r} is not NAME=ACTORS or NAME=ACTORSxGPUS")
            if match["name"] in found:
                raise ValueError(f"pools={self.pools!r} says {match['name']} twice")
            found[match["name"]] = Pool(int(match["actors"]), None if match["gpus"] is None else float(match["gpus"]))
        return found

    def pools_of(self, names: Sequence[str]) -> dict[str, Pool]:
        """The pool of each stage of a job; `ValueError` for one that the job does not have."""
        said = self.said_pools()
        unknown = sorted(set(said) - set(names))
        if unknown:
            raise ValueError(f"pools={self.pools!r}: this command has no stage {unknown[0]!r}, but {', '.join(names)}")
        return {name: said.get(name, Pool(self.workers)) for name in names}

    def check_device(self, device: str | None) -> None:
        """Raises `ValueError` for one card where each worker takes a card of its own."""
        if device is not None and ":" in device and not self.alone:
            raise ValueError(
                f"device={device!r} is one card; with --workers and on a cluster each worker has its own: say "
                f"{device.partition(':')[0]!r}, or CUDA_VISIBLE_DEVICES for fewer cards"
            )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `EngineOptions`, for a command that parses its own."""
    for one in fields(EngineOptions):
        kind = int if one.name == "workers" else str
        parser.add_argument(f"--{one.name}", type=kind, default=one.default, help=one.metadata["help"])


@dataclass(frozen=True)
class Stage:
    """One step of a job on a cluster: a pool of actors, each of which has loaded what the step needs.

    Attributes:
        name: of its pool.
        make: can be pickled; called once in each actor, it gives a function of a list, one entry for each problem, to a list
            of the same length. The first stage gets pairs of place and item, the last gives rows.
        model: whether it loads a model, so that an actor wants a GPU where the cluster has some.
        apart: whether its rows may be done one by one to find out which one is refused.
    """

    name: str
    make: Make
    model: bool = True
    apart: bool = True


@dataclass(frozen=True)
class Job:
    """What there is to do.

    Attributes:
        make: can be pickled; called once in each worker, it loads what is needed and gives a `Work`.
        stages: the same work in steps, for a cluster.
    """

    make: Make
    stages: tuple[Stage, ...]

    @property
    def apart(self) -> bool:
        """Whether rows may be done one by one to find out which one is refused."""
        return all(stage.apart for stage in self.stages)


def whole(name: str, make: Make, *, model: bool = True, apart: bool = True) -> Job:
    """A job of one stage; see `Stage`."""
    return Job(make, (Stage(name, _Joined(make), model, apart),))


@dataclass(frozen=True)
class _Joined:
    """A `Work` as a stage: all rows of a portion, in order."""

    make: Make

    def __call__(self) -> Callable[[list[Any]], list[Any]]:
        work = self.make()
        return lambda portion: sorted(
            (row for rows in work(portion) for row in rows), key=lambda row: int(row["index"])
        )


class InOrder:
    """A results file that is in order whatever is finished first; what is finished before its turn waits beside it.

    Args:
        path: the results file, or None to write nothing.
        count: rows that it holds already.
        total: rows that it will hold.
    """

    def __init__(self, path: Path | None, count: int, total: int) -> None:
        self.path, self.count = path, count
        self.waiting: dict[int, Row] = {}
        if path is not None:
            early = finished_rows(path.with_name(AHEAD))
            self.waiting = {row["index"]: row for row in early if row.get("index") in range(count, total)}

    def add(self, rows: Sequence[Row]) -> list[Row]:
        """Takes finished rows, which are on the disk when this returns; gives those whose turn has come, in order."""
        self.waiting.update({row["index"]: row for row in rows})
        ready = []
        while self.count in self.waiting:
            ready.append(self.waiting.pop(self.count))
            self.count += 1
        if self.path is not None:
            append_rows(self.path, ready)
            append_rows(self.path.with_name(AHEAD), [row for row in rows if row["index"] in self.waiting])
        return ready

    def close(self) -> None:
        """Removes the file of waiting rows, if none waits."""
        if self.path is not None and not self.waiting:
            self.path.with_name(AHEAD).unlink(missing_ok=True)


def cut(places: Sequence[int], items: Sequence[Any], size: int) -> list[Portion]:
    """Portions of at most `size` items, at the same places whatever is left: rows are made beside the same others."""
    portions: dict[tuple[int, int], list[tuple[int, Any]]] = {}
    for i, place in enumerate(places):
        # Of places that follow one another, too.
        portions.setdefault((place // size, place - i), []).append((place, items[place]))
    return list(portions.values())


def named(work: Work, portion: Portion, apart: bool = True) -> Iterator[list[Row]]:
    """`work` on a portion; where it refuses rows, the error names them, and the others are kept.

    To find out which one is refused they are done one by one, if they may be done `apart`.
    """
    seen: set[int] = set()
    try:
        for rows in work(portion):
            seen.update(row["index"] for row in rows)
            yield rows
        return
    except ValueError as error:
        if not apart and isinstance(error, OthersCodeError):
            raise  # it names its rows
        if len(portion) == 1 or not apart:
            raise ValueError(f"{places(portion)}: {error}") from error
    for pair in portion:
        if pair[0] not in seen:
            yield from named(work, [pair])


def places(portion: Portion) -> str:
    """A portion in words."""
    first, last = portion[0][0], portion[-1][0]
    return f"row {first}" if first == last else f"rows {first} to {last}"


def run(
    job: Job,
    items: Sequence[Any],
    options: EngineOptions,
    *,
    chunk: int,
    path: Path | None,
    done: int,
    progress: Progress,
    work: Work | None = None,
) -> Rows:
    """Makes the rows of all items that have none yet, and yields them in order, each after it is on the disk.

    Args:
        job: how.
        items: all of them, those with rows too; what can be pickled, unless this process works alone.
        options: who.
        chunk: the most items that are worked on together.
        path: the results file, or None.
        done: rows that it holds.
        progress: is told how many more rows are finished.
        work: the job's, loaded already, for this process where it works alone.

    Raises:
        ValueError: a row that cannot be done, by its place.
        OSError: a worker that ended, twice with the same rows.
    """
    results = InOrder(path, done, len(items))
    progress(len(results.waiting))
    if ready := results.add([]):
        yield ready
    left = [place for place in range(results.count, len(items)) if place not in results.waiting]
    if left:
        finished: Rows
        pools = options.pools_of([stage.name for stage in job.stages])
        most = options.workers if options.engine == LOCAL else max(pool.actors for pool in pools.values())
        portions = cut(left, items, chunk)
        if len(portions) < most:
            logger.warning(
                "%d rows in portions of %d are work for %d of %d workers: a --chunk of %d is work for all",
                len(left),
                chunk,
                len(portions),
                most,
                math.ceil(len(left) / most),
            )
        if options.engine == RAY:
            from lockstitch import engine_ray

            finished = engine_ray.rows(job, portions, pools, options.ray_address)
        elif options.workers > 1:
            from lockstitch import engine_local

            finished = engine_local.rows(job, portions, min(options.workers, len(portions)))
        else:
            finished = _here(work or job.make(), portions, job.apart)
        with closing(finished):
            for rows in finished:
                ready = results.add(rows)
                progress(len(rows))
                if ready:
                    yield ready
    results.close()


def _here(work: Work, portions: Sequence[Portion], apart: bool) -> Rows:
    for portion in portions:
        yield from named(work, portion, apart)
