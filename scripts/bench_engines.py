"""Rows a second by one process, by several, and by a Ray cluster of this machine, in turns, with median and spread.

    python scripts/bench_engines.py --workers 2 --repeats 5            # and Ray, where it is installed

The rows are prompts of the embedded Sudoku model, of which 8 trajectories each are sampled. `steady` leaves out what comes
before the first rows are there (processes, libraries, models), `all` does not. Ratios are within one repeat, to one process,
which uses all cores. Run it on a machine that does nothing else.
"""

import argparse
import os
import statistics
import time
from importlib.util import find_spec

from lockstitch.rewards.tasks.named import get_task
from lockstitch.sampling.loading import layout_of, load_tokenizer
from lockstitch.sampling.prompts import Reader, Request
from lockstitch.sampling.work import Drawing
from lockstitch.stitching.inputs import generate_problems

from lockstitch import embedded_model
from lockstitch.engine import EngineOptions, run, whole


def rates(requests: list[Request], options: EngineOptions, chunk: int) -> tuple[float, float]:
    """Rows a second in the steady state, and with all that comes before it."""
    job = whole(
        "sampler", Drawing(str(embedded_model("sudoku")), "llada", None, None, False, None, compile=False, n=8, seed=0)
    )
    moments: list[tuple[float, int]] = []

    def progress(count: int) -> None:
        if count:
            moments.append((time.perf_counter(), count))

    began = time.perf_counter()
    rows = sum(len(some) for some in run(job, requests, options, chunk=chunk, path=None, done=0, progress=progress))
    assert rows == len(requests)
    (first, early), (last, _) = moments[0], moments[-1]
    return (rows - early) / (last - first), rows / (last - began)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--chunk", type=int, default=10)
    options = parser.parse_args()
    task, model = get_task("sudoku"), str(embedded_model("sudoku"))
    reader = Reader(
        load_tokenizer(model), {"canvas_length": 20, "steps": 20, "temperature": 0.8}, layout_of(model, None)[0]
    )
    requests = [reader.request(task.prompt(one.problem.question)) for one in generate_problems(task, options.rows, 0)]
    engines = {"1 process": EngineOptions(), f"{options.workers} processes": EngineOptions(workers=options.workers)}
    if find_spec("ray") is not None:
        engines[f"Ray, {options.workers} actors"] = EngineOptions(engine="ray", workers=options.workers)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for _ in range(options.repeats):
        for name, engine in engines.items():
            found[name].append(rates(requests, engine, options.chunk))
    print(
        f"{options.rows} rows, portions of {options.chunk}, {options.repeats} repeats, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}\n"
    )
    print("| engine | steady, rows/s | range | ratio | range | all, rows/s |\n|---|---|---|---|---|---|")
    alone = found["1 process"]
    for name, pairs in found.items():
        steady, total = zip(*pairs, strict=True)
        ratios = [mine / theirs for mine, (theirs, _) in zip(steady, alone, strict=True)]
        print(
            f"| {name} | {statistics.median(steady):.1f} | {min(steady):.1f} - {max(steady):.1f} | "
            f"{statistics.median(ratios):.2f} | {min(ratios):.2f} - {max(ratios):.2f} | {statistics.median(total):.1f} |"
        )


if __name__ == "__main__":
    main()
