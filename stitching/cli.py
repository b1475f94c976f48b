"""`lockstitch stitch`: noisy diffusion trajectories in, a stitched answer out.

    lockstitch stitch --task arithmetic --generate 100 --output runs/demo
    lockstitch stitch --task sudoku --question 3102200002100320
    lockstitch stitch --task gsm8k --trajectories completions.jsonl --solver none --output runs/gsm8k

Options stand on the command line or in a YAML file (`--config`), as in TRL. Without `--model` the tasks arithmetic,
countdown and sudoku run on the models that come with the package.
"""

import hashlib
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lockstitch.stitching.config import NUM_TRAJECTORIES, SERVER, StitchConfig

from lockstitch.engine import EngineOptions
from lockstitch.errors import GOES_ON, reported, without_passwords
from lockstitch.options import parse_options


def _bar(total: int, done: int, hidden: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, initial=done, unit="problem", disable=hidden or None)


def stitch(config: StitchConfig, engine: EngineOptions | None = None) -> int:
    """Runs the pipeline, by default in this process; returns the exit status. Raises `ValueError` before any long work."""
    from lockstitch.rewards.tasks.golds import warning
    from lockstitch.rewards.tasks.named import get_task
    from lockstitch.rewards.tasks.rows import source_rows
    from lockstitch.stitching.inputs import Given, generate_problems, read_problems, read_trajectories
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading weights; the problems have a bar of their own
    task = get_task(config.task)
    config.settle(task)
    if config.trajectories is not None:
        given = read_trajectories(Path(config.trajectories), task, config.column)
    elif config.input is not None:
        given = read_problems(Path(config.input), task)
    elif config.source is not None:
        rows = source_rows(task, config.source, count=config.limit, seed=config.seed, option="--limit")
        given = [Given(task.read_row(row)) for row in rows]
    elif config.generate is not None:
        given = generate_problems(task, config.generate, config.seed)
    else:
        given = [Given(task.read_row({"question": config.question}))]
    given = given[: config.limit]
    faults = [(one.line, one.fault) for one in given if one.fault is not None]
    if faults:
        print(warning(str(config.trajectories or config.input), faults), file=sys.stderr)
    n = config.num_trajectories or NUM_TRAJECTORIES
    if config.trajectories is not None:
        n = max(len(one.completions or ()) for one in given)

    from lockstitch.stitching import pipeline
    from lockstitch.stitching.calibration import scorer_against_checker
    from lockstitch.stitching.kept import ANSWERS
    from lockstitch.stitching.report import write_report
    from lockstitch.stitching.terminal import render_problem, render_summary
    from lockstitch.stitching.work import Stitching

    from lockstitch import files, terminal
    from lockstitch.contents import sums_of_models
    from lockstitch.engine import run

    work = Stitching(config, n, None if config.output is None else Path(config.output))
    engine = engine or EngineOptions()
    engine.check_device(config.device)
    engine.pools_of([stage.name for stage in work.job().stages])
    directory = Path(config.output) if config.output is not None else None
    remembered: dict[str, Any] = {"num_trajectories": n}
    if directory is not None:
        # What cannot change a result may differ between a run and the one that resumes it.
        free = ("output", "color", "batch_size", "chunk", "device", *SERVER)
        remembered = {**{name: value for name, value in asdict(config).items() if name not in free}, **remembered}
        remembered["solver"] = None if config.solver is None else without_passwords(config.solver)
        source = config.input or config.trajectories
        if source is not None:
            remembered["sha256"] = files.sha256(Path(source))
        elif config.source is not None:
            asked = [(one.problem.question, one.problem.answer, one.problem.columns) for one in given]
            remembered["sha256"] = hashlib.sha256(repr(asked).encode()).hexdigest()
        if task.fingerprint is not None:
            remembered["task_file"] = task.fingerprint
        if judges := _sums(config):
            remembered["judges"] = judges
        if models := sums_of_models(config.model, config.solver, config.planner):
            remembered["models"] = models
        files.claim_directory(directory, remembered)
    expected = [{"question": one.problem.question, "answer": one.problem.answer} for one in given]
    path = None if directory is None else directory / files.RESULTS
    rows = [] if path is None else files.finished_by_index(path, expected)
    loaded = work() if engine.alone and len(rows) < len(given) else None  # before a bar is drawn
    with (
        _bar(len(given), len(rows), directory is None) as bar,
        closing(
            run(
                work.job(),
                given,
                engine,
                chunk=config.chunk,
                path=path,
                done=len(rows),
                progress=bar.update,
                work=loaded,
            )
        ) as new,
    ):
        for more in new:
            rows += more
    color = terminal.use_color(config.color)
    summary = pipeline.summarise(task, rows, work.absent, remembered)
    if directory is None:
        print(render_problem(rows[0], width=_width(), color=color))
        print(render_summary(summary, color=color))
        return 0
    if config.scorer != "calculator":
        summary["scorer"] = scorer_against_checker(task, rows, work.drawn_first)
    summary["unreadable_gold"] = len(faults)
    files.write_whole(directory / files.SUMMARY, files.to_json(summary))
    write_report(directory / pipeline.REPORT, rows, summary)
    (directory / ANSWERS).unlink(missing_ok=True)
    if config.question is not None:
        print(render_problem(rows[0], width=_width(), color=color))
    print(render_summary(summary, color=color))
    print(f"\nLook at {directory / pipeline.REPORT}")
    return 0


def _sums(config: StitchConfig) -> dict[str, str]:
    """The SHA-256 of what scores and the vote hang on: the files of fitted weights, verifiers, judges and functions."""
    from lockstitch.rewards.imports import file_of
    from lockstitch.stitching.score import scorer_parts
    from lockstitch.stitching.verifier import FILE

    from lockstitch.contents import model_files
    from lockstitch.files import sha256

    files = [Path(name) for name in (config.scorer_weights, config.evidence_weights) if name is not None]
    for part in scorer_parts(config.scorer):
        kind, _, name = part.partition(":")
        if kind == "verifier":
            files.append(Path(name) / FILE if Path(name).is_dir() else Path(name))
        elif kind in ("prm", "likelihood"):
            files += model_files(Path(name))
        elif (own := file_of(part)) is not None:
            files.append(own)
    return {str(file): sha256(file) for file in files if file.is_file()}


def _width() -> int:
    import shutil

    from lockstitch.stitching.terminal import NARROWEST

    return max(NARROWEST, shutil.get_terminal_size((120, 40)).columns)


@reported("lockstitch stitch", f"interrupted; with --output, {GOES_ON}")
def main(argv: list[str] | None = None) -> int:
    """Entry point of `lockstitch stitch`."""
    from trl import TrlParser

    parser = TrlParser((StitchConfig, EngineOptions), prog="lockstitch stitch")
    return stitch(*parse_options(parser, sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    raise SystemExit(main())
