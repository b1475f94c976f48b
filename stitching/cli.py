"""`lockstitch stitch`: noisy diffusion trajectories in, a stitched answer out.

    lockstitch stitch --task arithmetic --generate 100 --output runs/demo
    lockstitch stitch --task sudoku --question 3102200002100320
    lockstitch stitch --task gsm8k --trajectories completions.jsonl --solver none --output runs/gsm8k

Options stand on the command line or in a YAML file (`--config`), as in TRL. Without `--model` the tasks arithmetic,
countdown and sudoku run on the models that come with the package.
"""

import hashlib
import math
import sys
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lockstitch.engine import EngineOptions
from lockstitch.errors import GOES_ON, reported, without_passwords
from lockstitch.options import parse_options

EMBEDDED = "embedded"
NONE = "none"
PATH = "path"
SERVER = ("solver_timeout", "solver_attempts", "solver_concurrency")  # of a server's solver alone


@dataclass
class StitchConfig:
    """Everything that `lockstitch stitch` can be told."""

    task: str = field(
        metadata={"help": "A name that `lockstitch tasks` lists, a YAML file, file.py:attribute or module:attribute."}
    )
    input: str | None = field(
        default=None,
        metadata={
            "help": "Problems: JSON Lines with 'question' and, where known, 'answer'; or a "
            "benchmark file in its own notation."
        },
    )
    question: str | None = field(default=None, metadata={"help": "One problem, shown in the terminal."})
    generate: int | None = field(default=None, metadata={"help": "This many generated held-out problems."})
    trajectories: str | None = field(
        default=None,
        metadata={
            "help": "Trajectories sampled elsewhere: rows with a question and 'completions' or "
            "'completion', or as lockstitch sample, TRL and lm-eval write them."
        },
    )
    source: str | None = field(
        default=None,
        metadata={"help": "Problems of the task's own rows: the name of one of its sources, such as test."},
    )
    column: str | None = field(
        default=None,
        metadata={"help": "The column of the completions of --trajectories, if it has no name that is known."},
    )
    limit: int | None = field(default=None, metadata={"help": "Only the first so many problems."})
    output: str | None = field(
        default=None,
        metadata={
            "help": "Directory for results.jsonl, summary.json and report.html. Needed unless one question is asked."
        },
    )
    model: str | None = field(
        default=None,
        metadata={"help": "Diffusion model: a directory or hub name. Default: the embedded one of the task."},
    )
    family: str | None = field(
        default=None, metadata={"help": "How the model attends and predicts, if its config does not say."}
    )
    mask_id: int | None = field(
        default=None, metadata={"help": "The mask token, if neither tokenizer nor config says it."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code of a checkpoint of unknown type."})
    device: str | None = field(
        default=None, metadata={"help": "Of the diffusion model (default: the accelerator, if any)."}
    )
    num_trajectories: int | None = field(default=None, metadata={"help": "N, trajectories per problem (default 8)."})
    canvas_length: int | None = field(default=None, metadata={"help": "Tokens of the canvas (default: the task's)."})
    chat_template: bool | None = field(
        default=None,
        metadata={"help": "Whether questions go through the tokenizer's chat template; by default if it has one."},
    )
    system_prompt: str | None = field(default=None, metadata={"help": "What a conversation begins with."})
    preset: str | None = field(
        default=None,
        metadata={
            "help": "Named settings of the sampler, such as llada, dream, sdar; what is said beside it "
            "goes before what it says."
        },
    )
    block_length: int | None = field(
        default=None, metadata={"help": "Positions denoised together (default: the model's own block, else all)."}
    )
    policy: str | None = field(default=None, metadata={"help": "quota (default) or threshold."})
    steps: int | None = field(
        default=None, metadata={"help": "Denoising steps under quota (default: four tokens a step)."}
    )
    threshold: float | None = field(default=None, metadata={"help": "Confidence to commit at, under threshold."})
    temperature: float | None = field(default=None, metadata={"help": "Of the trajectories (default 0.7)."})
    scorer: str = field(
        default="calculator",
        metadata={
            "help": "calculator, consensus, confidence, bmc, bound, likelihood:MODEL, prm:MODEL (prm:embedded:sudoku) or "
            "module:function; a+b combines."
        },
    )
    scorer_weights: str | None = field(
        default=None, metadata={"help": "Fitted weights of this scorer (`lockstitch prm` writes scorer_weights.json)."}
    )
    checker: str = field(
        default="exact",
        metadata={"help": "exact: the task's checker has a say in every chain; none: the scorer alone."},
    )
    rescore: bool = field(
        default=False,
        metadata={"help": "Have the scorer read the stitched chain again, and go by what it says there."},
    )
    rule: str | None = field(
        default=None,
        metadata={
            "help": "Stitching rule: path, paper or public (default: path, or paper where the task has "
            "no checker of steps)."
        },
    )
    delta: float = field(default=0.9, metadata={"help": "Steps that score at least this are kept."})
    rounds: bool | None = field(
        default=None,
        metadata={
            "help": "Denoise again around the evidence (default: yes, with the rule path and a diffusion model)."
        },
    )
    round_width: int | None = field(
        default=None,
        metadata={
            "help": "Canvases denoised side by side in a round (default 1: each learns from all before "
            "it; more wait less for one another)."
        },
    )
    round_temperature: float | None = field(
        default=None, metadata={"help": "Of the canvases that are denoised again (default: as temperature)."}
    )
    solver: str | None = field(
        default=None,
        metadata={
            "help": "Writes the answer: a model directory or hub name, vllm:MODEL, openai:MODEL@URL, "
            "none, or embedded (default for the embedded tasks)."
        },
    )
    solver_timeout: float | None = field(
        default=None, metadata={"help": "Seconds that a request to an openai: solver may take (default 120)."}
    )
    solver_attempts: int | None = field(
        default=None, metadata={"help": "How often such a request is tried, with growing pauses (default 5)."}
    )
    solver_concurrency: int | None = field(default=None, metadata={"help": "Such requests at a time (default 8)."})
    seed: int = field(default=0, metadata={"help": "Seed of all noise and of generated problems."})
    batch_size: int = field(default=256, metadata={"help": "Most rows in one forward pass."})
    chunk: int = field(
        default=25, metadata={"help": "Problems worked on together; results are saved after each chunk."}
    )
    color: str = field(default="auto", metadata={"help": "auto, always or never."})

    def __post_init__(self) -> None:
        from lockstitch.stitching.score import TRACED, scorer_parts
        from lockstitch.stitching.stitch import RULES

        from lockstitch.terminal import WHEN

        sources = ("input", "question", "generate", "trajectories", "source")
        given = [name for name in sources if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"say where the problems come from, once: --{', --'.join(sources)} (given: {given or 'none'})"
            )
        if self.rule is not None and self.rule not in RULES:
            raise ValueError(f"rule={self.rule!r} is not one of {', '.join(RULES)}")
        if not 0 <= self.delta < math.inf:
            raise ValueError(
                f"delta={self.delta} must be a finite number of at least 0 (above 1 keeps the anchor alone)"
            )
        if self.round_temperature is not None and not 0 <= self.round_temperature < math.inf:
            raise ValueError(f"round_temperature={self.round_temperature} must be a finite number of at least 0")
        self._check_server()
        for name in (
            "generate",
            "limit",
            "num_trajectories",
            "round_width",
            "batch_size",
            "chunk",
            "solver_attempts",
            "solver_concurrency",
        ):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
        if self.checker not in ("exact", "none"):
            raise ValueError(f"checker={self.checker!r} is not one of exact, none")
        if self.rescore and self.rule not in (None, PATH):
            raise ValueError(f"rescore=True would be ignored: rule={self.rule!r} puts no chain together; path does")
        traced = sorted(set(scorer_parts(self.scorer)) & TRACED)
        if self.rescore and traced:
            raise ValueError(
                f"rescore=True: scorer={traced[0]!r} reads a sampler's trace, which a stitched chain has not"
            )
        if self.color not in WHEN:
            raise ValueError(f"color={self.color!r} is not one of {', '.join(WHEN)}")
        if self.output is None and self.question is None:
            raise ValueError("--output DIR is needed (only --question can do without)")
        if self.column is not None and self.trajectories is None:
            raise ValueError(f"column={self.column!r} would be ignored without --trajectories")
        if self.trajectories is not None:
            sampling = ("model", "family", "mask_id", "device", "chat_template", "system_prompt", "num_trajectories",
                        "canvas_length", "preset",
                        "block_length", "policy", "steps", "threshold", "temperature", "rounds", "round_width",
                        "round_temperature")  # fmt: skip
            ignored = [name for name in sampling if getattr(self, name) is not None]
            if self.trust_remote_code and "prm:" not in self.scorer:
                ignored.append("trust_remote_code")
            if ignored:
                raise ValueError(f"--trajectories come as they are: {', '.join(ignored)} would be ignored")
            if traced:
                raise ValueError(f"scorer={traced[0]!r} reads the sampler's trace, which --trajectories do not have")
            self.rounds = False
        self.check_rounds()
        if self.question is not None and self.limit is not None:
            raise ValueError(f"limit={self.limit} would be ignored with --question")

    def check_rounds(self) -> None:
        """Raises `ValueError` for settings of rounds that do not go with the rule, or with one another."""
        if self.rounds and self.rule not in (None, PATH):
            raise ValueError(f"rounds stitch by the rule path; rule={self.rule!r} takes --rounds false")
        if self.round_width is not None and (self.rounds is False or self.rule not in (None, PATH)):
            raise ValueError(f"round_width={self.round_width} would be ignored without rounds")

    def settle(self, task: Any) -> None:
        """Takes the rule and the rounds that fit the task where none was said; `ValueError` for those that do not fit."""
        if task.checker is None and (self.rule == PATH or self.rounds):
            what = "rule='path'" if self.rule == PATH else "rounds=True"
            raise ValueError(
                f"{what} follows what the checker of steps knows, which task {task.name!r} has not: --rule "
                "paper or public, without rounds"
            )
        if self.scorer == "calculator":
            from lockstitch.stitching.score import Calculator

            if task.checker is None and self.trajectories is not None:  # these have no trace for the next best to read
                raise ValueError(
                    f"scorer 'calculator' asks the checker of steps, which task {task.name!r} has not: with "
                    "--trajectories, 'prm:MODEL' or 'module:function' need none"
                )
            Calculator(task)  # refuses a task without a checker
        self.rule = self.rule or (PATH if task.checker is not None else "paper")
        if self.rescore and self.rule != PATH:
            raise ValueError(f"rescore=True would be ignored: rule={self.rule!r} puts no chain together; path does")
        if self.rounds is None:
            self.rounds = self.rule == PATH
        self.check_rounds()

    def _check_server(self) -> None:
        of_server = [name for name in SERVER if getattr(self, name) is not None]
        if of_server and not (self.solver or "").startswith("openai:"):
            said = without_passwords(repr(self.solver))
            raise ValueError(f"{', '.join(of_server)} would be ignored: solver={said} is not openai:MODEL@URL")
        if self.solver_timeout is not None and not self.solver_timeout > 0:
            raise ValueError(f"solver_timeout={self.solver_timeout} must be a positive number of seconds")


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


def solver_name(config: StitchConfig, task: Any) -> str:
    """The solver that is asked for, or that the task has by itself."""
    return config.solver or (EMBEDDED if task.embedded else NONE)


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


@reported("lockstitch stitch", f"interrupted; with --output, {GOES_ON}")
def main(argv: list[str] | None = None) -> int:
    """Entry point of `lockstitch stitch`."""
    from trl import TrlParser

    parser = TrlParser((StitchConfig, EngineOptions), prog="lockstitch stitch")
    return stitch(*parse_options(parser, sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    raise SystemExit(main())
