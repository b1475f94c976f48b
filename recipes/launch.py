"""`lockstitch grpo`, `sft`, `adapt` and `prm`: what `accelerate launch -m lockstitch.recipes.…` starts, as `trl grpo` does.

    lockstitch grpo --config tiny/sudoku.yaml
    lockstitch sft --dataset_name my.jsonl --model_name_or_path MODEL --output_dir runs/mine
    lockstitch grpo --accelerate_config fsdp2 --num_processes 8 --config LLaDA-8B-Instruct/gsm8k.yaml

`--accelerate_config` names one of the package's own (single, ddp, fsdp2, zero2, zero3) or a file; `--num_processes` goes to
the launcher as well. Without either there is one process, which needs no launcher.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from lockstitch.errors import GOES_ON, one_line

CONFIGS = Path(__file__).parent / "accelerate"


def command(recipe: str, argv: Sequence[str]) -> list[str]:
    """The command that starts a recipe; `ValueError` for an accelerate config that is neither a file nor one of ours."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--accelerate_config")
    parser.add_argument("--num_processes")
    parser.add_argument("--cpu", action="store_true")
    said, rest = parser.parse_known_args(argv)
    launcher = []
    if said.accelerate_config is not None or said.num_processes is not None:
        launcher = ["-m", "accelerate.commands.launch"]
    if said.accelerate_config is not None:
        launcher += ["--config_file", str(config_file(said.accelerate_config))]
    if said.num_processes is not None:
        launcher += ["--num_processes", said.num_processes]
    if said.cpu:
        launcher += ["--cpu"] if launcher else []
        rest = [*rest, "--use_cpu", "true"]
    # -P: files of the working directory are not imported in the place of libraries.
    return [sys.executable, "-P", *launcher, "-m", f"lockstitch.recipes.{recipe}", *rest]


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
        return subprocess.run(command(recipe, argv), check=False).returncode
    raise AssertionError("one_line ends the process")


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
