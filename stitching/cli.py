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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lockstitch.stitching.stitch_config import EMBEDDED, NONE, SERVER, StitchConfig, solver_name

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
        rows = source_rows(task, config.source, count=config.limit, seed=config.seed)
        given = [Given(task.read_row(row)) for row in rows]
    elif config.generate is not None:
        given = generate_problems(task, config.generate, config.seed)
    else:
        given = [Given(task.read_row({"question": config.question}))]
    given = given[: config.limit]
    faults = [(one.line, one.fault) for one in given if one.fault is not None]
    if faults:
        print(warning(str(config.trajectories or config.input), faults), file=sys.stderr)
    n = config.num_trajectories or 8
    if config.trajectories is not None:
        n = max(len(one.completions or ()) for one in given)

    from lockstitch.stitching import pipeline
    from lockstitch.stitching.calibration import scorer_against_checker
    from lockstitch.stitching.kept import ANSWERS
    from lockstitch.stitching.report import write_report
    from lockstitch.stitching.terminal import render_problem, render_summary
    from lockstitch.stitching.work import Stitching

    from lockstitch import files, terminal
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
            remembered["sha256"] = hashlib.sha256(Path(source).read_bytes()).hexdigest()
        elif config.source is not None:
            asked = [(one.problem.question, one.problem.answer) for one in given]
            remembered["sha256"] = hashlib.sha256(repr(asked).encode()).hexdigest()
        if task.fingerprint is not None:
            remembered["task_file"] = task.fingerprint
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
        summary["scorer"] = scorer_against_checker(task, rows)
    summary["unreadable_gold"] = len(faults)
    files.write_whole(directory / files.SUMMARY, files.to_json(summary))
    write_report(directory / pipeline.REPORT, rows, summary)
    (directory / ANSWERS).unlink(missing_ok=True)
    if config.question is not None:
        print(render_problem(rows[0], width=_width(), color=color))
    print(render_summary(summary, color=color))
    print(f"\nLook at {directory / pipeline.REPORT}")
    return 0


def _width() -> int:
    import shutil

    return shutil.get_terminal_size((120, 40)).columns


def load_denoiser(config: StitchConfig, task: Any) -> tuple[Any, Any]:
    """The diffusion model and its settings; None twice for trajectories from elsewhere."""
    if config.trajectories is not None:
        return None, None
    embedded = config.model is None
    from lockstitch.sampling.chat import Chat
    from lockstitch.sampling.config import SamplerConfig
    from lockstitch.sampling.denoiser import Denoiser
    from lockstitch.sampling.layouts import check_layout, in_blocks_of
    from lockstitch.sampling.loading import layout_of
    from lockstitch.sampling.presets import preset

    from lockstitch import embedded_model

    if embedded and not task.embedded:
        raise ValueError(f"no embedded model does {task.name}: name one with --model, or give --trajectories")
    canvas = config.canvas_length or task.canvas_length
    if canvas is None:
        raise ValueError(f"task {task.name!r} has no canvas length of its own: say --canvas_length")
    path = str(embedded_model(task.name)) if embedded else str(config.model)
    family, _ = layout_of(path, config.family)
    said = {name: getattr(config, name) for name in ("block_length", "policy", "steps", "threshold")}
    said |= {"temperature": config.temperature, "batch_size": config.batch_size}
    settings = {name: value for name, value in said.items() if value is not None}
    if config.preset is not None:
        # Recombined canvases have the length that was asked for: the last block ends with it.
        sampler_config = in_blocks_of(preset(config.preset, canvas, **{"whole_blocks": False, **settings}), family)
    else:
        settings = {"temperature": 0.7} | settings
        sampler_config = in_blocks_of(SamplerConfig(canvas_length=canvas, **settings), family)
        if sampler_config.policy == "quota" and config.steps is None:
            blocks = sampler_config.blocks
            sampler_config = replace(sampler_config, steps=max(blocks, canvas // 4 // blocks * blocks))
    check_layout(sampler_config, family)
    denoiser = Denoiser.from_pretrained(
        path,
        family=config.family,
        mask_id=config.mask_id,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
    )
    system = config.system_prompt if config.system_prompt is not None else task.system
    denoiser.chat = Chat.of(denoiser.tokenizer, config.chat_template, system)
    return denoiser, sampler_config


def load_scorer(config: StitchConfig, task: Any, denoiser: Any) -> Any:
    """The scorer; `denoiser` for those that ask it."""
    from lockstitch.stitching import score

    return score.load_scorer(
        config.scorer,
        task,
        trust_remote_code=config.trust_remote_code,
        denoiser=denoiser,
        weights=config.scorer_weights,
    )


def load_solver(config: StitchConfig, task: Any) -> Any:
    """The solver, or None."""
    from lockstitch.stitching import refine

    from lockstitch import embedded_model

    name = solver_name(config, task)
    if name == NONE:
        return None
    if name == EMBEDDED and not task.embedded:
        raise ValueError(f"the embedded solver does not know {task.name}: name another --solver, or none")
    said = {option: getattr(config, option) for option in SERVER}
    retries = {option.removeprefix("solver_"): value for option, value in said.items() if value is not None}
    return refine.load_solver(str(embedded_model("solver")) if name == EMBEDDED else name, task, **retries)


def load_planner(config: StitchConfig, task: Any) -> Any:
    """The planner that `plan_then_diffuse` asks, or None where that method does not run."""
    from lockstitch.stitching import refine
    from lockstitch.stitching.plans import AnswerPlanner, TextPlanner

    from lockstitch import embedded_model

    if "plan_then_diffuse" not in (config.methods or ()):
        return None
    if config.planner not in (None, EMBEDDED):
        return TextPlanner.from_pretrained(str(config.planner), task)
    if not task.embedded:
        raise ValueError(f"the embedded solver does not know {task.name}: name another --planner")
    return AnswerPlanner(refine.load_solver(str(embedded_model("solver")), task), task)


@reported("lockstitch stitch", f"interrupted; with --output, {GOES_ON}")
def main(argv: list[str] | None = None) -> int:
    """Entry point of `lockstitch stitch`."""
    from trl import TrlParser

    parser = TrlParser((StitchConfig, EngineOptions), prog="lockstitch stitch")
    return stitch(*parse_options(parser, sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    raise SystemExit(main())
