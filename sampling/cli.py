"""`lockstitch sample`: prompts in, trajectories out, to keep, to read or to look at.

    lockstitch sample --model embedded:sudoku --prompt $'3102\n2000\n0210\n0320\n' --canvas_length 20 --watch
    lockstitch sample --model embedded:arithmetic --prompt '2*3=[[:1]]' --n 4 --temperature 1
    lockstitch sample --model DIR --input prompts.jsonl --canvas_length 256 --n 8 --output runs/sample --html trace.html
    lockstitch sample --model DIR --task gsm8k --limit 100 --canvas_length 256 --output runs/gsm8k

Options stand on the command line or in a YAML file (`--config`), as in TRL. Beside those of this file there is one for each
field of `SamplerConfig` and of `UniformConfig`, which is for DiffusionGemma: a checkpoint's model type says which are read.
"""

import argparse
import hashlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, make_dataclass, replace
from functools import partial
from inspect import getdoc
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.presets import PRESETS
from lockstitch.sampling.uniform_config import MODEL_TYPE, UniformConfig

from lockstitch.engine import EngineOptions
from lockstitch.errors import GOES_ON, reported
from lockstitch.options import parse_options

if TYPE_CHECKING:
    from lockstitch.sampling.canvases import Look
    from lockstitch.sampling.families import Family
    from lockstitch.sampling.prompts import Request
    from lockstitch.sampling.terminal import Ink
    from lockstitch.sampling.trajectory import Trajectory
    from lockstitch.sampling.work import Drawing
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from lockstitch.prompts import TaskPrompts

CHUNK = 25
STDIN = "-"


@dataclass
class SampleOptions:
    """What `lockstitch sample` can be told beside the settings of the sampler."""

    model: str = field(
        metadata={
            "help": "A directory or hub name, of a model or an adapter (with its base), or embedded:NAME for one that "
            "comes with the package."
        }
    )
    prompt: str | None = field(
        default=None,
        metadata={
            "help": "One prompt. [[NAME:WIDTH]] in it is a blank of so many tokens to fill in; the name may be empty."
        },
    )
    input: str | None = field(
        default=None,
        metadata={
            "help": "Prompts: JSON Lines with 'prompt' and, if not all is open, 'canvas': token ids, "
            "null where a position is to be denoised; - reads them from standard input."
        },
    )
    task: str | None = field(
        default=None,
        metadata={
            "help": "Prompts of a task: a name that `lockstitch tasks` lists, a YAML file, "
            "file.py:attribute or module:attribute."
        },
    )
    source: str | None = field(
        default=None,
        metadata={
            "help": "Which rows of the task; by default its first source, or new held-out problems "
            "where it makes them up."
        },
    )
    prompt_form: str | None = field(
        default=None, metadata={"help": "How the task asks: tags, boxed, fenced or plain (default), as it has them."}
    )
    limit: int | None = field(
        default=None,
        metadata={
            "help": "Only the first so many prompts of input or task; so many new ones where a task makes them up."
        },
    )
    preset: str | None = field(
        default=None,
        metadata={
            "help": f"Named settings of the sampler; what is said beside it goes before what it says: "
            f"{', '.join(PRESETS)}."
        },
    )
    n: int = field(default=1, metadata={"help": "Trajectories per prompt. Default: 1."})
    seed: int = field(default=0, metadata={"help": "Seed of all noise. Default: 0."})
    chat_template: bool | None = field(
        default=None,
        metadata={
            "help": "Whether prompts without blanks go through the tokenizer's chat template; by default if there is "
            "one."
        },
    )
    system_prompt: str | None = field(default=None, metadata={"help": "What a conversation begins with."})
    output: str | None = field(
        default=None,
        metadata={"help": "Directory for results.jsonl and config.json. Without it the texts are printed."},
    )
    watch: bool = field(default=False, metadata={"help": "Draw each prompt's canvases while they are denoised."})
    html: str | None = field(default=None, metadata={"help": "Write a page with all traces to this file."})
    family: str | None = field(
        default=None, metadata={"help": "How the model attends and predicts, if its config does not say."}
    )
    mask_id: int | None = field(
        default=None, metadata={"help": "The mask token, if neither tokenizer nor config says it."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code of a checkpoint of unknown type."})
    device: str | None = field(default=None, metadata={"help": "Default: the accelerator, if there is one."})
    chunk: int | None = field(
        default=None,
        metadata={
            "help": "Prompts worked on together; results are saved after each chunk. Default: 25, or 1 with --watch."
        },
    )
    color: str = field(default="auto", metadata={"help": "auto (default), always or never."})

    def __post_init__(self) -> None:
        from lockstitch.terminal import WHEN

        given = [name for name in ("prompt", "input", "task") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"say what to sample from, once: --prompt, --input or --task (given: {' and '.join(given) or 'none'})"
            )
        for name, of in (("source", ("task",)), ("prompt_form", ("task",)), ("limit", ("task", "input"))):
            if getattr(self, name) is not None and given[0] not in of:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} would be ignored with --{given[0]}: it goes with "
                    f"--{' and --'.join(of)}"
                )
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"preset={self.preset!r} is not one of {', '.join(PRESETS)}")
        for name in ("n", "chunk", "limit"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
        if self.watch and self.chunk not in (None, 1):
            raise ValueError(f"chunk={self.chunk} does not go with watch, which draws one prompt at a time: 1")
        if self.mask_id is not None and (type(self.mask_id) is not int or self.mask_id < 0):
            raise ValueError(f"mask_id={self.mask_id!r} must be a token id")
        if type(self.seed) is not int:
            raise ValueError(f"seed={self.seed!r} must be a whole number")
        if self.color not in WHEN:
            raise ValueError(f"color={self.color!r} is not one of {', '.join(WHEN)}")
        if self.html is not None and (Path(self.html).is_dir() or not Path(self.html).parent.is_dir()):
            raise ValueError(f"html={self.html!r} must be a file in a directory that exists")


def field_help(record: type) -> dict[str, str]:
    """What a dataclass's docstring says of each field under `Attributes:`."""
    _, _, section = (getdoc(record) or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n     .*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


def sampler_options() -> type:
    """A dataclass with an option for each field of `SamplerConfig` and of `UniformConfig`: None where it is not said."""
    options: dict[str, tuple[str, Any, Any]] = {}
    for record in (SamplerConfig, UniformConfig):
        types, said = get_type_hints(record), field_help(record)
        for one in fields(record):
            text = said[one.name]
            if record is UniformConfig:
                text = f"{MODEL_TYPE}: {text} Default: the checkpoint's."
            elif one.default not in (MISSING, None):
                text += f" Default: {one.default}."
            text = text[:1].upper() + text[1:]
            metadata = {"help": text.replace("%", "%%")}
            options.setdefault(one.name, (one.name, types[one.name] | None, field(default=None, metadata=metadata)))
    return make_dataclass("SamplerOptions", options.values())


def sample(options: SampleOptions, settings: Mapping[str, Any], engine: EngineOptions | None = None) -> int:
    """Runs the command; returns the process's exit status.

    Args:
        options: what to sample, and where to.
        settings: values of `SamplerConfig` or `UniformConfig`, those alone that were said.
        engine: who does it; by default this process.

    Raises `ValueError` before any model is loaded.
    """
    from lockstitch.sampling.adapter_files import find_adapter
    from lockstitch.sampling.loading import layout_of, load_tokenizer
    from lockstitch.sampling.page import write_trace
    from lockstitch.sampling.prompts import read_result_row
    from lockstitch.sampling.terminal import Ink
    from lockstitch.sampling.work import Drawing
    from transformers.utils import logging

    from lockstitch import files, model_path, terminal
    from lockstitch.prompts import task_prompts

    engine = engine or EngineOptions()
    _check_engine(options, engine)

    logging.disable_progress_bar()  # of loading weights; the prompts have a bar of their own
    model = model_path(options.model)
    family, raw = layout_of(model, options.family)
    of_model = raw["model_type"]
    if of_model == MODEL_TYPE and find_adapter(model) is not None:
        raise ValueError(f"model={options.model!r} is an adapter of a {MODEL_TYPE} model, which is sampled from whole")
    tokenizer = load_tokenizer(model, trust_remote_code=options.trust_remote_code)
    asked = None
    if options.task is not None:
        asked = task_prompts(
            options.task, source=options.source, form=options.prompt_form, count=options.limit, seed=options.seed
        )
        if asked.canvas_length is not None:
            settings = {"canvas_length": asked.canvas_length, **settings}
        if options.system_prompt is None:
            options = replace(options, system_prompt=asked.system)
    requests = _requests(options, settings, model, family, of_model, tokenizer, asked)
    remembered = _remembered(options, settings, asdict(requests[0].config))
    if options.chat_template is None:
        remembered["chat_template"] = tokenizer.chat_template is not None and of_model != MODEL_TYPE
    if asked is not None or options.input == STDIN:
        rows = [(request.text, request.canvas, dict(request.columns)) for request in requests]
        remembered["rows"] = hashlib.sha256(repr(rows).encode()).hexdigest()
    directory = None if options.output is None else Path(options.output)
    if directory is not None:
        files.claim_directory(directory, remembered)
    ink = Ink(tokenizer, terminal.use_color(options.color))
    kept, costs = [], []
    drawing = Drawing(
        model,
        of_model,
        options.family,
        options.mask_id,
        options.trust_remote_code,
        options.device,
        options.n,
        options.seed,
    )
    for row, is_new in _rows(options, engine, drawing, requests, directory, ink):
        if options.html is not None:
            kept.append(row)
        if options.watch or directory is None:
            _show(row["prompt"], read_result_row(row), ink, replay=options.watch and not is_new)
        costs += [(one["ledger"]["nfe"], one["finished"]) for one in row["trajectories"]]
    if options.html is not None:
        write_trace(Path(options.html), kept, remembered, tokenizer)
    if directory is not None:
        nfe, finished = (sum(column) / len(costs) for column in zip(*costs, strict=True))
        print(
            f"{len(requests)} prompts, {len(costs)} trajectories in {directory / files.RESULTS}: {nfe:.1f} forward passes "
            f"each, {100 * finished:.0f}% finished"
        )
    if options.html is not None:
        print(f"Look at {options.html}")
    return 0


def _check_engine(options: SampleOptions, engine: EngineOptions) -> None:
    """Raises `ValueError` for what several workers would ignore."""
    if options.watch and not engine.alone:
        raise ValueError("watch draws what this process denoises: one worker of the local engine")
    engine.check_device(options.device)
    engine.pools_of(["sampler"])


def _requests(
    options: SampleOptions,
    settings: Mapping[str, Any],
    model: str,
    family: "Family",
    of_model: str,
    tokenizer: "Tokenizer",
    asked: "TaskPrompts | None",
) -> "list[Request]":
    """What is asked for, read and checked; `settings` are the sampler's, those alone that were said, or the task's."""
    from lockstitch.sampling.chat import Chat
    from lockstitch.sampling.layouts import check_layout
    from lockstitch.sampling.prompts import Reader
    from lockstitch.sampling.uniform_prompts import UniformReader, config_of

    from lockstitch import files

    reader: Reader | UniformReader
    if of_model == MODEL_TYPE:
        for name in ("preset", "family", "mask_id", "trust_remote_code", "chat_template", "system_prompt"):
            if getattr(options, name):
                raise ValueError(
                    f"{name}={getattr(options, name)!r} would be ignored by a {of_model} model, which has no "
                    "mask token and runs its own schedule, without code of the checkpoint"
                )
        reader = UniformReader(tokenizer, config_of(model, settings))
    else:
        for name in {one.name for one in fields(UniformConfig)} - {one.name for one in fields(SamplerConfig)}:
            if name in settings:
                raise ValueError(
                    f"{name}={settings[name]!r} is for {MODEL_TYPE} models, and would be ignored by this one, "
                    f"of type {of_model!r}"
                )
        preset = PRESETS[options.preset] if options.preset is not None else {}
        chat = Chat.of(tokenizer, options.chat_template, options.system_prompt)
        reader = Reader(tokenizer, {**preset, **settings}, family, chat)
    if asked is not None:
        requests = [reader.asked(row) for row in asked.rows]
    elif options.input is not None:
        with files.named_file(options.input) as path:
            requests = reader.read(path)[: options.limit]
    else:
        requests = [reader.request(options.prompt)]
    if isinstance(requests[0].config, SamplerConfig):
        check_layout(requests[0].config, family)
    return requests


def _remembered(options: SampleOptions, settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What may not differ between a run and the one that resumes it: all that can change a result."""
    # A preset is what it sets.
    free = ("preset", "output", "html", "watch", "device", "chunk", "color", "batch_size")
    remembered = {**asdict(options), **config, "canvas_length": settings.get("canvas_length")}
    if options.input not in (None, STDIN):
        remembered["sha256"] = hashlib.sha256(Path(str(options.input)).read_bytes()).hexdigest()
    return {name: value for name, value in remembered.items() if name not in free}


def _rows(
    options: SampleOptions,
    engine: EngineOptions,
    drawing: "Drawing",
    requests: "Sequence[Request]",
    directory: Path | None,
    ink: "Ink",
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Every request's result in order, and whether it is new: those of an earlier run first; each is on the disk by then."""
    from lockstitch.sampling.prompts import known_columns
    from lockstitch.sampling.work import Drawer
    from tqdm import tqdm

    from lockstitch import files
    from lockstitch.engine import Portion, Work, run, whole

    expected = [known_columns(i, request) for i, request in enumerate(requests)]
    done = [] if directory is None else files.finished_by_index(directory / files.RESULTS, expected)
    yield from ((row, False) for row in done)
    if len(done) == len(requests):
        return
    # Frames, and texts on the same terminal, are progress enough; otherwise a bar, if a terminal reads it.
    hidden = True if options.watch or (directory is None and sys.stdout.isatty()) else None
    bar = tqdm(total=len(requests), initial=len(done), unit="prompt", disable=hidden)
    finished, trajectories = len(done), 0

    def rows_finished(count: int) -> None:
        nonlocal finished, trajectories
        finished, trajectories = finished + count, 0
        bar.update(finished - bar.n)

    def trajectories_finished(count: int) -> None:
        nonlocal trajectories
        trajectories += count
        bar.update(finished + trajectories // options.n - bar.n)

    def here(drawer: Drawer, portion: Portion) -> Iterator[list[dict[str, Any]]]:
        with _watched(options, portion[0][1].text, portion[0][0], ink) as on_step:
            yield from drawer(portion, trajectories_finished, on_step)

    work: Work | None = partial(here, drawing()) if engine.alone else None
    path = None if directory is None else directory / files.RESULTS
    chunk = options.chunk or (1 if options.watch else CHUNK)
    with (
        bar,
        closing(
            run(
                whole("sampler", drawing, model=drawing.device != "cpu"),
                requests,
                engine,
                chunk=chunk,
                path=path,
                done=len(done),
                progress=rows_finished,
                work=work,
            )
        ) as results,
    ):
        for rows in results:
            yield from ((row, True) for row in rows)


@contextmanager
def _watched(options: SampleOptions, prompt: str, index: int, ink: "Ink") -> "Iterator[Callable[[Look], None] | None]":
    """What is called at each denoising step of a prompt, and draws it if that was asked for."""
    from lockstitch.sampling.terminal import Live, Screen, title_of

    if not options.watch:
        yield None
        return
    width, height = _screen()
    screen = Screen(height)
    try:
        yield Live(screen, title_of(index, prompt, width), ink, width, options.n)
    finally:
        screen.close()


def _show(prompt: str, trajectories: "Sequence[Trajectory]", ink: "Ink", replay: bool) -> None:
    from lockstitch.sampling.terminal import render, title_of, watch

    width, height = _screen()
    title = title_of(trajectories[0].prompt, prompt, width)
    if replay:
        watch(trajectories, title, ink, width, height)
    print(render(trajectories, title, ink, width), end="\n\n", flush=True)


def _screen() -> tuple[int, int | None]:
    """Cells and lines of the terminal; None lines where there is no terminal."""
    size = shutil.get_terminal_size((120, 40))
    return size.columns, size.lines if sys.stdout.isatty() else None


@reported("lockstitch sample", f"interrupted; with --output, {GOES_ON}")
def main(argv: list[str] | None = None) -> int:
    """Entry point of `lockstitch sample`."""
    from trl import TrlParser

    parser = TrlParser(
        (SampleOptions, sampler_options(), EngineOptions),
        prog="lockstitch sample",
        formatter_class=argparse.HelpFormatter,
    )  # the help says the defaults that there are
    options, sampler, engine = parse_options(parser, sys.argv[1:] if argv is None else argv)
    return sample(options, {name: value for name, value in asdict(sampler).items() if value is not None}, engine)


if __name__ == "__main__":
    raise SystemExit(main())
