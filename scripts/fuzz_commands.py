"""What every command does with values that nobody means, as a table.

    python scripts/fuzz_commands.py                          # every field of every command, eight values each: an hour
    python scripts/fuzz_commands.py --commands grpo --values 2 --log grpo.txt

A command is called with a tiny configuration that works, one of whose fields has a value of `BAD`: of another type, out of
range, a path that is not there or is of the wrong kind, or a tag of YAML that would make an object. A value that is accepted
must run to its end; one that is refused must end with exit status 2 and one line that names the field. Counted are
tracebacks, calls that take longer than `--limit`, other exit statuses, and refusals in which the field's name is missing.

All are called in forks of one process that has imported what they need. Left out: pairs of fields, and `--push`.
"""

import argparse
import contextlib
import faulthandler
import json
import math
import os
import random
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

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1",
               "WANDB_MODE": "disabled", "TQDM_DISABLE": "1"}  # fmt: skip

# As YAML has them; the paths are in the folder that a try runs in.
BAD = {
    "empty": "''", "-1": "-1", "0": "0", "nan": ".nan", "inf": ".inf", "1e30": "1.0e+30", "huge": str(10**30),
    "list": "[1, 2]", "mapping": "{a: 1}", "true": "true", "text": "seven", "number in quotes": "'-0.5x'",
    "no such path": "missing/path.jsonl", "directory": "folder", "file": "file.txt", "device": "cuda:7",
    "tag": "!!python/object:os.system {}", "null byte": '"a\\0b"', "not in UTF-8": '"\\uD800"',
}  # fmt: skip
PUZZLE = "3102\\n2000\\n0210\\n0320\\n"
TRAINED = {
    "model_name_or_path": "embedded:sudoku-early", "num_problems": 16, "max_steps": 1, "use_cpu": True, "bf16": False,
    "dtype": "float32", "report_to": "none", "logging_steps": 1, "output_dir": "run", "save_steps": 1, "seed": 0,
}  # fmt: skip
BASES: dict[str, dict[str, Any]] = {
    "sample": {"model": "embedded:sudoku-early", "prompt": PUZZLE.encode().decode("unicode_escape"), "canvas_length": 20,
               "steps": 1, "output": "run", "color": "never"},
    "stitch": {"task": "sudoku", "generate": 1, "num_trajectories": 1, "steps": 1, "rounds": False, "solver": "none",
               "output": "run", "color": "never"},
    "grade": {"task": "gsm8k", "completions": "completions.jsonl", "output": "run"},
    "sft": {**TRAINED, "generate": "sudoku", "canvas_length": 20, "per_device_train_batch_size": 2,
            "gradient_checkpointing": False},
    "grpo": {**TRAINED, "task": "sudoku", "prompt_form": "plain", "reward_funcs": ["sudoku"], "max_completion_length": 20,
             "steps": 1, "num_generations": 2, "per_device_train_batch_size": 2, "html": False},
    "export": {"adapter": "adapter", "output": "out"},
    "rewards": {},
    "report": {"run": "log"},
}  # fmt: skip
USAGE = 12  # lines that argparse may say of a command before its error
FOR_OTHERS = {"push", "push_to_hub"}  # which would ask the hub


@dataclass
class End:
    """How a try ended: its exit status (None: it was killed for taking too long), and what it said."""

    status: int | None
    said: str

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

    if command in ("sft", "grpo"):
        recipe = import_module(f"lockstitch.recipes.{command}")

        def run(argv: list[str]) -> None:
            sys.argv = [command, *argv]
            recipe.main()

        return run
    module, _, function = COMMANDS[command]
    found: Callable[[list[str]], Any] = getattr(import_module(module), function)
    return found


def fields_of(command: str) -> list[str]:
    """Every field that a command can be told."""
    if command in ("grade", "export", "rewards", "report"):
        return {
            "grade": ["task", "completions", "output", "form", "reward", "chunk"],
            "export": ["adapter", "output", "base", "revision", "names", "hub_model_id"],
            "rewards": ["json"],
            "report": ["run", "html"],
        }[command]
    from lockstitch.recipes import grpo, sft
    from lockstitch.rl.grpo_config import DiffusionGRPOConfig
    from lockstitch.rl.health import HealthConfig
    from lockstitch.rl.lora import DiffusionModelConfig
    from lockstitch.rl.sft_config import DiffusionSFTConfig
    from lockstitch.sampling.sample_options import SampleOptions, sampler_options
    from lockstitch.stitching.config import StitchConfig

    records = {
        "sample": (SampleOptions, sampler_options()),
        "stitch": (StitchConfig,),
        "sft": (sft.RecipeArguments, DiffusionSFTConfig, DiffusionModelConfig),
        "grpo": (grpo.RecipeArguments, HealthConfig, DiffusionGRPOConfig, DiffusionModelConfig),
    }[command]
    return [one.name for record in records for one in fields(record) if one.init and one.name not in FOR_OTHERS]


def words(command: str, field: str, value: str) -> list[str]:
    """The command line of a try; writes the YAML file where the command reads one."""
    base = BASES[command]
    if command in ("sample", "stitch", "sft", "grpo"):
        text = "".join(f"{name}: {json.dumps(said)}\n" for name, said in base.items() if name != field)
        Path("config.yaml").write_text(text + f"{field}: {value}\n", encoding="utf-8")
        return ["--config", "config.yaml"]
    plain = value.strip("'").replace('"a\\0b"', "a\rb").replace('"\\uD800"', "\udc80")
    argv = [] if field == "run" else [str(base["run"])] if "run" in base else []
    for name, said in (base | {field: plain}).items():
        argv += [f"{plain}"] if name == field == "run" else [] if name == "run" else [f"--{name}={said}"]
    return argv


def prepare(folder: Path) -> None:
    """Files and directories that the configurations name."""
    Path(folder, "folder").mkdir()
    Path(folder, "folder", "inside").write_text("x")
    Path(folder, "file.txt").write_text("neither JSON nor YAML: [\n")
    row = {"question": "Half of 9?", "answer": "4.5", "completion": "That is \\boxed{9/2}."}
    Path(folder, "completions.jsonl").write_text(json.dumps(row) + "\n")
    Path(folder, "log").mkdir()
    Path(folder, "log", "trainer_state.json").write_text(
        '{"log_history": [{"step": 1, "loss": 1.0}], "global_step": 1}'
    )


def attempt(run: Callable[[list[str]], Any], command: str, field: str, value: str, limit: float, adapter: Path) -> End:
    """Calls a command in a fork, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        prepare(Path(folder))
        if command == "export":
            shutil.copytree(adapter, Path(folder, "adapter"))
        said = Path(folder, "said")
        pid = os.fork()
        if pid == 0:
            _child(run, command, field, value, said, math.ceil(limit))
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
        return End(status, said.read_text(encoding="utf-8", errors="replace"))


def _child(run: Callable[[list[str]], Any], command: str, field: str, value: str, said: Path, limit: int) -> None:
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
        code = run(words(command, field, value)) or 0
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


def tries(command: str, count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Fields with the names of bad values, so many for each field, drawn by the seed."""
    for field in fields_of(command):
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
    columns = ("traceback", "hang", "status", "more than a line", "unnamed")
    print("| command | tries | refused | tracebacks | hangs | other statuses | more than a line | field not named |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        make_adapter(Path(folder, "adapter"))
        for command in options.commands:
            run, counts = main_of(command), Counter[str]()
            for field, name in tries(command, options.values, options.seed):
                if (options.fields and field not in options.fields) or random.random() >= options.share:
                    continue
                end = attempt(run, command, field, BAD[name], options.limit, Path(folder, "adapter"))
                kinds = end.kinds(command, field, BAD[name])
                counts.update(["tries", *kinds, *["refused"] * (end.status == 2)])
                if kinds:
                    with options.log.open("a") as log:
                        log.write(f"=== {command} {field}={name}: {kinds[0]} {end.status}\n{end.said[-3000:]}\n")
            row = (f"`{command}`", counts["tries"], counts["refused"], *(counts[kind] for kind in columns))
            print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
