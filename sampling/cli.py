"""`lockstitch sample`: prompts in, trajectories out, to keep, to read or to look at.

    lockstitch sample --model embedded:sudoku --prompt $'3102\n2000\n0210\n0320\n' --canvas_length 20 --watch
    lockstitch sample --model embedded:arithmetic --prompt '2*3=[[:1]]' --n 4 --temperature 1
    lockstitch sample --model DIR --input prompts.jsonl --canvas_length 256 --n 8 --output runs/sample --html trace.html
    lockstitch sample --model DIR --task gsm8k --limit 100 --canvas_length 256 --output runs/gsm8k

Options stand on the command line or in a YAML file (`--config`), as in TRL: those of `sample_options.py`, and one for each
field of `SamplerConfig` and of `UniformConfig`, which is for DiffusionGemma: a checkpoint's model type says which are read.
"""

import argparse
import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.presets import PRESETS, layered
from lockstitch.sampling.sample_options import STDIN, SampleOptions, sampler_options
from lockstitch.sampling.uniform_config import MODEL_TYPE, UniformConfig

from lockstitch.engine import EngineOptions
from lockstitch.errors import GOES_ON, reported
from lockstitch.options import parse_options, read_config
from lockstitch.terminal import is_terminal

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


def sample(options: SampleOptions, settings: Mapping[str, Any], engine: EngineOptions | None = None) -> int:
    """Runs the command; returns the process's exit status.

    Args:
        options: what to sample, and where to.
        settings: values of `SamplerConfig` or `UniformConfig`, those alone that were said; None takes back what the preset
            says.
        engine: who does it; by default this process.

    Raises `ValueError` before any model is loaded.
    """
    from lockstitch.sampling.adapter_files import find_adapter
    from lockstitch.sampling.contract import write_replies
    from lockstitch.sampling.layouts import in_blocks_of
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
    model = model_path(options.model if options.adapter is None else f"{options.adapter}@{options.model}")
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
        options.compile,
        options.n,
        options.seed,
    )
    for row, is_new in _rows(options, engine, drawing, requests, directory, ink):
        if options.html is not None or options.replies is not None:
            kept.append(row)
        if options.watch or directory is None:
            _show(row["prompt"], read_result_row(row), ink, replay=options.watch and not is_new)
        costs += [(one["ledger"]["nfe"], one["finished"]) for one in row["trajectories"]]
    if options.html is not None:
        write_trace(Path(options.html), kept, remembered, tokenizer)
    if options.replies is not None:
        assert isinstance(requests[0].config, SamplerConfig)
        write_replies(Path(options.replies), kept, in_blocks_of(requests[0].config, family).block)
    if directory is not None:
        nfe, finished = (sum(column) / len(costs) for column in zip(*costs, strict=True))
        print(
            f"{len(requests)} prompts, {len(costs)} trajectories in {directory / files.RESULTS}: {nfe:.1f} forward passes "
            f"each, {100 * finished:.0f}% finished"
        )
    if options.html is not None:
        print(f"Look at {options.html}")
    if options.replies is not None:
        print(f"Replies in {options.replies}")
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
    from lockstitch.sampling.compiled import check_compiled
    from lockstitch.sampling.contract import check_replies
    from lockstitch.sampling.layouts import check_layout
    from lockstitch.sampling.prompts import Reader
    from lockstitch.sampling.uniform_prompts import UniformReader, config_of

    from lockstitch import files

    reader: Reader | UniformReader
    if of_model == MODEL_TYPE:
        for name in (
            "preset",
            "family",
            "mask_id",
            "trust_remote_code",
            "chat_template",
            "system_prompt",
            "replies",
            "compile",
        ):
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
        chat = Chat.of(tokenizer, options.chat_template, options.system_prompt)
        settings = settings if options.preset is None else layered(options.preset, settings)
        reader = Reader(tokenizer, settings, family, chat)
    if asked is not None:
        requests = [reader.asked(row) for row in asked.rows]
    elif options.input is not None:
        with files.named_file(options.input) as path:
            requests = reader.read(path)[: options.limit]
    else:
        requests = [reader.request(options.prompt)]
    if isinstance(requests[0].config, SamplerConfig):
        if options.replies is not None:
            check_replies(requests[0].config, family, any(request.canvas for request in requests))
        check_layout(requests[0].config, family)
        if options.compile:
            check_compiled(requests[0].config)
    return requests


def _remembered(options: SampleOptions, settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What may not differ between a run and the one that resumes it: all that can change a result."""
    from lockstitch import files
    from lockstitch.contents import sums_of_models

    # A preset is what it sets.
    free = ("preset", "output", "html", "replies", "watch", "device", "chunk", "color", "batch_size")
    remembered = {**asdict(options), **config, "canvas_length": settings.get("canvas_length")}
    if options.input not in (None, STDIN):
        remembered["sha256"] = files.sha256(Path(str(options.input)))
    kept = options.output is not None or options.html is not None
    if kept and (sums := sums_of_models(options.model, options.adapter)):  # files that may take a minute to read
        remembered["models"] = sums
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
    return size.columns, size.lines if is_terminal() else None


@reported("lockstitch sample", f"interrupted; with --output, {GOES_ON}")
def main(argv: list[str] | None = None) -> int:
    """Entry point of `lockstitch sample`."""
    from trl import TrlParser

    parser = TrlParser(
        (SampleOptions, sampler_options(), EngineOptions),
        prog="lockstitch sample",
        formatter_class=argparse.HelpFormatter,
    )  # the help says the defaults that there are
    config, rest = read_config(parser, sys.argv[1:] if argv is None else argv)
    options, sampler, engine = parse_options(parser, rest, config)
    settings = {name: value for name, value in asdict(sampler).items() if value is not None}
    if options.preset is not None:
        # What is None over the preset's values was said to be.
        own = PRESETS[options.preset]
        _, sampler, _ = parse_options(parser, rest, {**own, **config})
        settings |= {name: None for name in own if getattr(sampler, name) is None}
    return sample(options, settings, engine)


if __name__ == "__main__":
    raise SystemExit(main())
