"""Several processes of one machine that share the work.

Each is a fresh interpreter that loads its own models, keeps to its part of the cores, takes one of the machine's GPUs where
there are some (in turn, if there are fewer), and works on one portion at a time. It ignores Ctrl-C, which is the caller's,
and ends with the caller, however that ends. A process that dies is replaced, and its portion tried once more.
"""

import logging
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from lockstitch import cores
from lockstitch.engine import Job, Portion, Row, Rows, named, places

logger = logging.getLogger(__name__)

_CONTEXT = multiprocessing.get_context("spawn")
_SAFE_PATH = "PYTHONSAFEPATH"
_MOST_TRIES = 2
_FAREWELL_SECONDS = 10.0


class WorkerError(RuntimeError):
    """A mistake of the program's own in a worker, with the worker's traceback."""


@dataclass
class _Task:
    portion: Portion
    tries: int = 0


@dataclass
class _Worker:
    process: SpawnProcess
    connection: "Connection"
    task: _Task | None = None
    seen: set[int] = field(default_factory=set)  # places of rows that came back


def rows(job: Job, portions: Sequence[Portion], count: int) -> Rows:
    """Yields the rows of all portions as they are finished, made by `count` processes; see `lockstitch.engine.run`."""
    waiting = deque(map(_Task, portions))
    share = max(1, cores.available() // count)
    cards = _cards() if any(stage.model for stage in job.stages) else []
    blob = pickle.dumps((job.make, job.apart))
    workers: dict[int, _Worker] = {}
    try:
        while waiting or any(worker.task for worker in workers.values()):
            for slot in range(count):
                if waiting and slot not in workers:
                    workers[slot] = _start(blob, share, cards[slot % len(cards)] if cards else None)
                if waiting and workers[slot].task is None:
                    _feed(workers[slot], waiting)
            busy = {worker.connection: slot for slot, worker in workers.items() if worker.task}
            for connection in wait(list(busy)):
                slot = busy[connection]  # type: ignore[index]
                yield from _listen(workers, slot, waiting)
        for worker in workers.values():
            worker.connection.close()
            worker.process.join(_FAREWELL_SECONDS)
    finally:
        for worker in workers.values():
            worker.process.kill()
            worker.process.join()


def _start(blob: bytes, share: int, card: str | None) -> _Worker:
    ours, theirs = _CONTEXT.Pipe()
    said = os.environ.get(_SAFE_PATH)
    process = _CONTEXT.Process(target=_serve, args=(theirs, blob, share, card, said), name="lockstitch worker")
    os.environ[_SAFE_PATH] = "1"  # else files of the working directory would be imported in the place of Python's own
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the worker can ignore it
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        _restore(_SAFE_PATH, said)
    theirs.close()
    return _Worker(process, ours)


def _restore(name: str, value: str | None) -> None:
    """Gives an environment variable the value that it had, if it had one."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _feed(worker: _Worker, waiting: deque[_Task]) -> None:
    """Gives an idle worker the next portion. One that has died takes it too: `_listen` will notice."""
    worker.task = waiting.popleft()
    worker.seen = set()
    worker.task.tries += 1
    try:
        worker.connection.send(worker.task.portion)
    except (BrokenPipeError, ConnectionResetError):
        logger.debug("a worker died idle", exc_info=True)


def _listen(workers: dict[int, _Worker], slot: int, waiting: deque[_Task]) -> Iterator[list[Row]]:
    """Takes one message of a worker; raises what it says went wrong."""
    worker = workers[slot]
    assert worker.task is not None
    try:
        kind, value = worker.connection.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        worker.connection.close()
        del workers[slot]
        rest = [pair for pair in worker.task.portion if pair[0] not in worker.seen]
        if rest and worker.task.tries >= _MOST_TRIES:
            status = worker.process.exitcode or 0
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
            raise ChildProcessError(
                f"{places(rest)}: the worker ended by {how}, and so did the one before it with these rows; signal 9 is "
                "mostly the kernel's, for want of memory: fewer --workers, or a smaller --batch_size or --chunk"
            ) from None
        if rest:
            waiting.appendleft(_Task(rest, worker.task.tries))
        return
    if kind == "rows":
        worker.seen.update(row["index"] for row in value)
        yield value
    elif kind == "done":
        worker.task = None
    elif kind == "mistake":
        raise value
    else:
        raise WorkerError(f"{places(worker.task.portion)}: a worker failed\n\n{value}")


def _cards() -> list[str]:
    """The GPUs that this process sees, by the names that `CUDA_VISIBLE_DEVICES` gives them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


# --- in the worker ---------------------------------------------------------------------------------------------------


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _serve(connection: "Connection", blob: bytes, share: int, card: str | None, safe_path: str | None) -> None:
    """What a worker does: loads, then works on portion after portion, until the pipe closes."""
    _restore(_SAFE_PATH, safe_path)
    signal.signal(signal.SIGINT, lambda *_: None)  # and not SIG_IGN, which programs in sandboxes would inherit
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cores.keep_to(share)
    if card is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = card
    os.environ["TQDM_DISABLE"] = "1"  # the caller has a bar
    work, apart = None, True
    while True:
        try:
            portion: Portion = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            if work is None:
                make, apart = pickle.loads(blob)
                work = make()
            for rows in named(work, portion, apart):
                connection.send(("rows", rows))
            answer: tuple[str, object] = ("done", None)
        except (ValueError, OSError) as error:
            # As text: an error of a library may need arguments to be unpickled.
            answer = ("mistake", ValueError(str(error)) if isinstance(error, ValueError) else OSError(str(error)))
        except Exception:
            logger.debug("a portion failed", exc_info=True)
            answer = ("fault", traceback.format_exc())
        try:
            connection.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return
