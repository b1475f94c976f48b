"""The `lockstitch` console script: names the rooms' commands and hands the arguments on.

It imports a room only when its command is called, so that `--help` and `--version` answer at once. Each command is a
function `main(argv: list[str]) -> int` of its room, which parses its own arguments and returns the exit status.

    lockstitch stitch --help
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from lockstitch import __version__


class Command(NamedTuple):
    """The module whose function runs the command, what the command does in a line, and the function's name."""

    module: str
    summary: str
    function: str = "main"


COMMANDS = {
    "sample": Command("lockstitch.sampling.cli", "sample trajectories, watch them being denoised, fill in blanks"),
    "stitch": Command("lockstitch.stitching.cli", "sample trajectories, stitch their best steps, answer and report"),
    "grade": Command(
        "lockstitch.rewards.tasks.grade_cli", "score completions of a task: accuracy, and what each earns"
    ),
    "lm-eval": Command(
        "lockstitch.recipes.harness", "run lm-evaluation-harness's tasks, with our models as `lockstitch`"
    ),
    "sft": Command("lockstitch.recipes.launch", "train on prompts and completions", "sft"),
    "grpo": Command(
        "lockstitch.recipes.launch", "train by reinforcement learning, on a task or one's own data", "grpo"
    ),
    "adapt": Command("lockstitch.recipes.launch", "turn an autoregressive model into a diffusion model", "adapt"),
    "prm": Command(
        "lockstitch.recipes.launch", "label reasoning steps and train a process reward model on them", "prm"
    ),
    "export": Command("lockstitch.rl.export_cli", "pack a trained adapter with its card, or merge it into its base"),
    "tasks": Command(
        "lockstitch.rewards.tasks.tasks_cli", "list the tasks, ours and plug-ins, or show one with a prompt"
    ),
    "rewards": Command("lockstitch.rewards.rewards_cli", "list the installed rewards, ours and plug-ins"),
    "report": Command("lockstitch.rl.run_report", "write the page of a training run: curves, health, completions"),
}


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="lockstitch",
        usage="%(prog)s [--help] [--version] COMMAND ...",
        description="Reasoning and reinforcement-learning post-training of diffusion language models.",
        epilog="\n".join(
            [
                "commands:",
                *(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
                "\n`lockstitch COMMAND --help` tells the options of a command.",
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lockstitch {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that `argv` (default: the process's arguments) opens with and returns its exit status.

    Raises:
        SystemExit: 0 after `--help` or `--version`; 2 when the command is missing or unknown, with the known ones.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in COMMANDS:
        module, _, function = COMMANDS[argv[0]]
        status: int = getattr(import_module(module), function)(argv[1:])
        return status
    parser = _parser()
    parser.parse_known_args(argv[:1])  # `--help` and `--version` end here
    given, near = "a command is missing", ""
    if argv:
        given = f"unknown command {argv[0]!r}"
        close = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        near = f"; {close[0]}?" if close else ""
    parser.error(f"{given}{near}; known: {', '.join(COMMANDS)}")


if __name__ == "__main__":
    sys.exit(main())
