"""What every command does with values that nobody means, as a table.

    python scripts/fuzz_commands.py                          # every field of every command, eight values each: an hour
    python scripts/fuzz_commands.py --commands grpo --values 2 --log grpo.txt

A command is called with a tiny configuration that works, one of whose fields has a value of `BAD`: of another type, out of
range, a path that is not there or is of the wrong kind, or a tag of YAML that would make an object. A value that is accepted
must run to its end; one that is refused must end with exit status 2 and one line that names the field. Counted are
tracebacks, calls that take longer than `--limit`, other exit statuses, and refusals in which the field's name is missing.

A refusal is late that comes when rows or a checkpoint are written already. The configurations are those of `fuzz_bases.py`;
a command has several where its options belong to different kinds of work. All are called in forks of one process that has
imported what they need. Left out: pairs of fields, and `--push`.
"""

import argparse
import contextlib
import faulthandler
import inspect
import io
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fuzz_bases import BAD, BASES, prepare

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1",
               "WANDB_MODE": "disabled", "TQDM_DISABLE": "1"}  # fmt: skip

RECIPES = ("sft", "grpo", "adapt", "prm")  # which start another process
YAML = ("sample", "stitch", *RECIPES)  # which read their options from a file, too
USAGE = 12  # lines that argparse may say of a command before its error
PLACES = {"report": "run", "tasks": "task"}  # what a command is told without an option's name
FOR_OTHERS = {"push", "push_to_hub"}  # which would ask the hub


@dataclass
class End:
    """How a try ended: its exit status (None: it took too long and was killed), what it said, whether results were left."""

    status: int | None
    said: str
    worked: bool = False

    def kinds(self, program: str, field: str, value: str) -> list[str]:
        """What is wrong with it: nothing, if it ran to its end or was refused in a line that names the field or value."""
        lines = self.said.splitlines()
        if self.status is None:
            return ["hang"]
        if "Traceback (most recent call last)" in self.said:
            return ["traceback"]
        if self.status not in (0, 2):
            return ["status"]
        if self.status == 0:
            return []
        if self.worked:
            return ["late"]
        told = [i for i, line in enumerate(lines) if line.startswith((f"{program}: ", f"lockstitch {program}: "))]
        if not told or told[-1] > USAGE:
            return ["more than a line"]
        said = "\n".join(lines[told[-1] :])
        names = (field, field.removesuffix("_name_or_path"), repr(value.strip("'")).strip("'"))
        return [] if any(name in said for name in names) else ["unnamed"]


def main_of(command: str) -> Callable[[list[str]], Any]:
    """The function that runs a command in this process: a recipe's own, where the command starts another process."""
    from importlib import import_module

    from lockstitch.cli import COMMANDS

    if command in RECIPES:
        recipe = import_module(f"lockstitch.recipes.{command}")

        def run(argv: list[str]) -> None:
            sys.argv = [command, *argv]
            recipe.main()

        return run
    module, _, function = COMMANDS[command]
    found: Callable[[list[str]], Any] = getattr(import_module(module), function)
    return found


def fields_of(command: str, own: bool = False) -> list[str]:
    """Every field that a command can be told; `own`: those alone that no library's record has."""
    if command not in YAML:
        from lockstitch import cli

        with contextlib.redirect_stdout(io.StringIO()) as told, contextlib.suppress(SystemExit):
            cli.main([command, "--help"])
        named = re.findall(r"^  (?:-\w, )?--(\w+)", told.getvalue(), re.MULTILINE)
        own = re.findall(r"^  (\w+)  ", told.getvalue(), re.MULTILINE)
        return [name for name in (*own, *named) if name not in {*FOR_OTHERS, "help"}]
    from lockstitch.recipes import adapt, grpo, prm, sft
    from lockstitch.recipes.step_training import StepRewardConfig
    from lockstitch.rl.adaptation_config import AdaptationConfig
    from lockstitch.rl.grpo_config import DiffusionGRPOConfig
    from lockstitch.rl.health_rules import HealthConfig
    from lockstitch.rl.lora import DiffusionModelConfig
    from lockstitch.rl.sft_config import DiffusionSFTConfig
    from lockstitch.sampling.sample_options import SampleOptions, sampler_options
    from lockstitch.stitching.config import StitchConfig

    from lockstitch.engine import EngineOptions

    records = {
        "sample": (SampleOptions, sampler_options(), EngineOptions),
        "stitch": (StitchConfig, EngineOptions),
        "sft": (sft.RecipeArguments, DiffusionSFTConfig, DiffusionModelConfig),
        "grpo": (grpo.RecipeArguments, HealthConfig, DiffusionGRPOConfig, DiffusionModelConfig),
        "adapt": (adapt.RecipeArguments, AdaptationConfig, DiffusionModelConfig),
        "prm": (prm.RecipeArguments, StepRewardConfig, DiffusionModelConfig),
    }[command]
    ours = {
        name
        for record in records
        for kind in record.__mro__
        if kind.__module__.startswith("lockstitch") or not own
        for name in kind.__dict__.get("__dataclass_fields__", {})
        if not own or name in inspect.get_annotations(kind)
    }
    return [one.name for record in records for one in fields(record) if one.init and one.name in ours - FOR_OTHERS]


def words(base: str, field: str, value: str) -> list[str]:
    """The command line of a try; writes the YAML file where the command reads one."""
    command, said = base.split()[0], BASES[base]
    if command in YAML:
        text = "".join(f"{name}: {json.dumps(one)}\n" for name, one in said.items() if name != field)
        Path("config.yaml").write_text(text + f"{field}: {value}\n", encoding="utf-8")
        return ["--config", "config.yaml"]
    plain = value.strip("'").replace('"a\\0b"', "a\rb").replace('"\\uD800"', "\udc80")
    place = PLACES.get(command)
    options = said | {field: plain}
    return [
        *([str(options.pop(place))] if place in options else []),
        *(f"--{name}={one}" for name, one in options.items()),
    ]


def attempt(run: Callable[[list[str]], Any], base: str, field: str, value: str, limit: float, adapter: Path) -> End:
    """Calls a command in a fork, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        prepare(Path(folder))
        if base == "export":
            shutil.copytree(adapter, Path(folder, "adapter"))
        said = Path(folder, "said")
        pid = os.fork()
        if pid == 0:
            _child(run, base, field, value, said, math.ceil(limit))
        began, status = time.monotonic(), None
        while time.monotonic() - began < 10 * limit:
            ended, code = os.waitpid(pid, os.WNOHANG)
            if ended:
                status = os.waitstatus_to_exitcode(code)
                break
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGABRT if status is None else signal.SIGKILL)
        if status is None:
            os.waitpid(pid, 0)
        if status == -signal.SIGXCPU:
            status = None
        worked = [*Path(folder).glob("**/results.jsonl"), *Path(folder).glob("**/checkpoint-*")]
        return End(
            status, said.read_text(encoding="utf-8", errors="replace"), any(one.stat().st_size for one in worked)
        )


def _child(run: Callable[[list[str]], Any], base: str, field: str, value: str, said: Path, limit: int) -> None:
    code: object = 1
    try:
        os.setsid()
        os.chdir(said.parent)
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdin = open(os.devnull)  # noqa: SIM115
        faulthandler.enable()
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**28, 2**28))
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
        code = run(words(base, field, value)) or 0
    except SystemExit as ended:
        code = ended.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:  # noqa: BLE001  (whatever it is, it is what is looked for)
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1 if code else 0)


def tries(command: str, count: int, seed: int, own: bool) -> Iterator[tuple[str, str]]:
    """Fields with the names of bad values, so many for each field, drawn by the seed."""
    for field in fields_of(command, own):
        yield from ((field, name) for name in random.Random(f"{seed} {field}").sample(sorted(BAD), count))


def make_adapter(place: Path) -> None:
    """A small adapter to export, made in a process of its own."""
    pid = os.fork()
    if pid == 0:
        from lockstitch.rl.lora import lora_config
        from lockstitch.sampling.denoiser import Denoiser
        from peft import get_peft_model

        from lockstitch import model_path

        denoiser = Denoiser.from_pretrained("embedded:sudoku-early", device="cpu")
        denoiser.model.name_or_path = model_path("embedded:sudoku-early")
        get_peft_model(denoiser.model, lora_config(denoiser, 2, 2)).save_pretrained(place)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--commands", nargs="+", choices=BASES, default=list(BASES))
    parser.add_argument("--fields", nargs="+", help="these alone")
    parser.add_argument("--own", action="store_true", help="leave out what transformers' and TRL's records have")
    parser.add_argument("--accepted", action="store_true", help="log what was accepted, too")
    parser.add_argument("--values", type=int, default=8, help=f"of the {len(BAD)}, for each field (default 8)")
    parser.add_argument("--share", type=float, default=1.0, help="of all tries, drawn by the seed (default all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--limit",
        type=float,
        default=60.0,
        help="seconds of a processor that a call may take, and ten times as many in all (default 60)",
    )
    parser.add_argument("--log", type=Path, default=Path("fuzz.log"), help="what was wrong (default fuzz.log)")
    options = parser.parse_args()
    options.log.write_text("")
    from datasets import Dataset  # noqa: F401
    from lockstitch.recipes import held_out, reporting, rl_data, run_directory  # noqa: F401
    from lockstitch.rl.grpo import DiffusionGRPOTrainer  # noqa: F401
    from peft import PeftModel  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401

    random.seed(options.seed)
    columns = ("traceback", "hang", "status", "late", "more than a line", "unnamed")
    print(
        "| command | tries | refused | tracebacks | hangs | other statuses | late | more than a line | field not named |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        make_adapter(Path(folder, "adapter"))
        for base in options.commands:
            command = base.split()[0]
            run, counts = main_of(command), Counter[str]()
            for field, name in tries(command, options.values, options.seed, options.own):
                if (options.fields and field not in options.fields) or random.random() >= options.share:
                    continue
                end = attempt(run, base, field, BAD[name], options.limit, Path(folder, "adapter"))
                kinds = end.kinds(command, field, BAD[name])
                counts.update(["tries", *kinds, *["refused"] * (end.status == 2)])
                if kinds or (options.accepted and end.status == 0):
                    with options.log.open("a") as log:
                        kind = kinds[0] if kinds else "accepted"
                        log.write(f"=== {base} {field}={name}: {kind} {end.status}\n{end.said[-3000:]}\n")
            row = (f"`{base}`", counts["tries"], counts["refused"], *(counts[kind] for kind in columns))
            print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
