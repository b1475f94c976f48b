"""`lockstitch grpo`, `sft`, `adapt` and `prm`: what `accelerate launch -m lockstitch.recipes.…` starts, as `trl grpo` does.

    lockstitch grpo --config tiny/sudoku.yaml
    lockstitch sft --dataset_name my.jsonl --model_name_or_path MODEL --output_dir runs/mine
    lockstitch grpo --accelerate_config fsdp2 --num_processes 8 --config LLaDA-8B-Instruct/gsm8k.yaml

`--accelerate_config` names one of the package's own (single, ddp, fsdp2, zero2, zero3) or a file; `--num_processes` goes to
the launcher as well. Without either there is one process, which needs no launcher: this one becomes it. A launcher is told
of the signals that end this process, with all that it started.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from lockstitch.errors import GOES_ON, one_line
from lockstitch.options import read_yaml

CONFIGS = Path(__file__).parent / "accelerate"
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def command(recipe: str, argv: Sequence[str]) -> tuple[list[str], bool]:
    """The command that starts a recipe, and whether that is a launcher.

    Raises `ValueError` for an accelerate config that is neither a file nor one of ours.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--accelerate_config")
    parser.add_argument("--num_processes")
    parser.add_argument("--cpu", action="store_true")
    said, rest = parser.parse_known_args(argv)
    launcher, count = [], said.num_processes
    if said.accelerate_config is not None or said.num_processes is not None:
        launcher = ["-m", "accelerate.commands.launch"]
    if said.accelerate_config is not None:
        file = config_file(said.accelerate_config)
        launcher += ["--config_file", str(file)]
        count = count or read_yaml(file).get("num_processes")
    if said.num_processes is not None:
        launcher += ["--num_processes", said.num_processes]
    if said.cpu:
        # Of a CPU, accelerate starts one process, whatever it is told; several only where it is told of GPUs.
        launcher += ["--cpu" if str(count or 1) == "1" else "--multi_gpu"] if launcher else []
        rest = [*rest, "--use_cpu", "true"]
    # -P: files of the working directory are not imported in the place of libraries.
    return [sys.executable, "-P", *launcher, "-m", f"lockstitch.recipes.{recipe}", *rest], bool(launcher)


def config_file(name: str) -> Path:
    """A file of that name, or the package's own config; `ValueError` lists these."""
    if Path(name).is_file():
        return Path(name)
    own = {path.stem: path for path in sorted(CONFIGS.glob("*.yaml"))}
    if name not in own:
        raise ValueError(f"accelerate_config={name!r} is neither a file nor one of {', '.join(own)}")
    return own[name]


def _launch(recipe: str, argv: Sequence[str]) -> int:
    if {"-h", "--help"} & set(argv):
        return _help(recipe)
    with one_line(f"lockstitch {recipe}", f"interrupted; {GOES_ON}"):
        words, is_launcher = command(recipe, argv)
        if is_launcher:
            return run_to_its_end(words)
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(words[0], words)
    raise AssertionError("one_line ends the process")


def run_to_its_end(words: Sequence[str]) -> int:
    """The exit status of a command, which hears of what is to end this process, as all that it started does.

    It is in a session of its own, so that Ctrl-C reaches it once. Where one of these signals ended it, this process ends by
    the same; where another did, the status is that of a shell.

    Raises `KeyboardInterrupt` where this process was told to end by SIGINT, and the command has ended.
    """
    # What is ignored, as under nohup, stays ignored. What is blocked cannot come between a look at the process and a wait.
    waited = {number for number in PASSED_ON if signal.getsignal(number) != signal.SIG_IGN} | {signal.SIGCHLD}
    # A SIGCHLD that nobody handles is not kept for `sigwait`: where it is ignored, and on macOS by default.
    handler = signal.getsignal(signal.SIGCHLD)
    is_dropped = handler in (signal.SIG_DFL, signal.SIG_IGN)
    if is_dropped:
        signal.signal(signal.SIGCHLD, lambda *_: None)
    usual = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    interrupted = False
    try:
        process = subprocess.Popen(
            words, start_new_session=True, preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, usual)
        )
        while process.poll() is None:
            number = signal.sigwait(waited)
            if number != signal.SIGCHLD:
                interrupted |= number == signal.SIGINT
                with contextlib.suppress(ProcessLookupError):  # all have ended
                    os.killpg(process.pid, number)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, usual)
        if is_dropped:
            signal.signal(signal.SIGCHLD, handler)
    status = process.returncode
    if interrupted:
        raise KeyboardInterrupt
    if -status in PASSED_ON:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status if status >= 0 else 128 - status


def _help(recipe: str) -> int:
    """The recipe's own options; those of the trainer would take seconds to import, and fill pages."""
    from trl import TrlParser

    module = import_module(f"lockstitch.recipes.{recipe}")
    parser = TrlParser(
        (module.RecipeArguments,),
        prog=f"lockstitch {recipe}",
        description=(module.__doc__ or "").partition("\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--accelerate_config", help="single, ddp, fsdp2, zero2, zero3, or a file of accelerate's.")
    parser.add_argument("--num_processes", help="Processes, one for each GPU.")
    parser.add_argument("--cpu", action="store_true", help="Run on the CPU whatever else there is.")
    parser.epilog = (
        "Beside these there are all options of the trainer's config, of TRL's ModelConfig and, of grpo, of health "
        f"(`python -m lockstitch.recipes.{recipe} --help` lists them), in a YAML under --config or on the command line."
    )
    parser.print_help()
    return 0


def grpo(argv: Sequence[str]) -> int:
    """Entry point of `lockstitch grpo`."""
    return _launch("grpo", argv)


def sft(argv: Sequence[str]) -> int:
    """Entry point of `lockstitch sft`."""
    return _launch("sft", argv)


def adapt(argv: Sequence[str]) -> int:
    """Entry point of `lockstitch adapt`."""
    return _launch("adapt", argv)


def prm(argv: Sequence[str]) -> int:
    """Entry point of `lockstitch prm`."""
    return _launch("prm", argv)
