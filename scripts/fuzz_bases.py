"""The tiny configurations that `fuzz_commands.py` changes one field of, each of which works, and the files that they name.

A configuration is called by its command, and by what it is for where a command has several.
"""

import json
from pathlib import Path
from typing import Any

# Values that nobody means, as YAML has them; the paths are in the folder that a try runs in.
BAD = {
    "empty": "''", "-1": "-1", "0": "0", "nan": ".nan", "inf": ".inf", "1e30": "1.0e+30", "huge": str(10**30),
    "list": "[1, 2]", "mapping": "{a: 1}", "true": "true", "text": "seven", "number in quotes": "'-0.5x'",
    "no such path": "missing/path.jsonl", "directory": "folder", "file": "file.txt", "device": "cuda:7",
    "tag": "!!python/object:os.system {}", "null byte": '"a\\0b"', "not in UTF-8": '"\\uD800"',
}  # fmt: skip
PUZZLE = "3102\n2000\n0210\n0320\n"
TRAINED = {
    "model_name_or_path": "embedded:sudoku-early", "num_problems": 16, "max_steps": 1, "use_cpu": True, "bf16": False,
    "dtype": "float32", "report_to": "none", "logging_steps": 1, "output_dir": "run", "save_steps": 1, "seed": 0,
}  # fmt: skip
ADAPTED = {
    **TRAINED, "model_name_or_path": "embedded:solver", "layout": "context_causal", "block_length": 4,
    "per_device_train_batch_size": 2, "gradient_checkpointing": False,
}  # fmt: skip
JUDGED = {name: value for name, value in TRAINED.items() if name != "num_problems"} | {
    "per_device_train_batch_size": 2
}
STITCHED = {"num_trajectories": 1, "steps": 1, "rounds": False, "solver": "none", "output": "run", "color": "never"}
BASES: dict[str, dict[str, Any]] = {
    "sample": {"model": "embedded:sudoku-early", "prompt": PUZZLE, "canvas_length": 20, "steps": 1, "output": "run",
               "color": "never"},
    "sample a task": {"model": "embedded:sudoku-early", "task": "sudoku", "limit": 1, "canvas_length": 20, "steps": 1,
                      "output": "run", "color": "never"},
    "stitch": {"task": "sudoku", "generate": 1, **STITCHED},
    "stitch traces": {"task": "gsm8k", "trajectories": "traces.jsonl", "solver": "none", "output": "run",
                      "color": "never"},
    "grade": {"task": "gsm8k", "completions": "completions.jsonl", "output": "run"},
    "sft": {**TRAINED, "generate": "sudoku", "canvas_length": 20, "per_device_train_batch_size": 2,
            "gradient_checkpointing": False},
    "grpo": {**TRAINED, "task": "sudoku", "prompt_form": "plain", "reward_funcs": ["sudoku"], "max_completion_length": 20,
             "steps": 1, "num_generations": 2, "per_device_train_batch_size": 2, "html": False},
    "adapt": {**ADAPTED, "generate": "evidence", "canvas_length": 20},
    "adapt on rollouts": {**ADAPTED, "text": "rollouts", "states": "on_policy", "objective": "distillation",
                          "dataset_name": "prompts.jsonl", "num_problems": None, "canvas_length": 8, "use_peft": True,
                          "lora_r": 2, "lora_gate": True},
    "prm": {**JUDGED, "task": "sudoku", "label_model": "embedded:sudoku-early", "num_problems": 2, "num_eval_problems": 1,
            "num_trajectories": 1, "num_completions": 2, "steps": 1},
    "prm of traces": {**JUDGED, "task": "arithmetic", "traces": "traces.jsonl", "model_name_or_path": "embedded:arithmetic"},
    "prm of features": {"task": "gsm8k", "traces": "traces.jsonl", "eval_traces": "others.jsonl",
                        "model_name_or_path": "features", "output_dir": "run"},
    "prm of rows": {**JUDGED, "dataset_name": "steps.jsonl"},
    "export": {"adapter": "adapter", "output": "out"},
    "tasks": {},
    "rewards": {},
    "report": {"run": "log"},
}  # fmt: skip


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _traces(first: int, count: int) -> list[dict[str, Any]]:
    """Sums with a right and a wrong trace each."""
    return [
        {
            "question": f"{n} eggs and {n} more?",
            "answer": str(2 * n),
            "completions": [f"{n}+{n}={2 * n}\n#### {2 * n}", f"{n}+{n}={n}\n#### {n}"],
        }
        for n in range(first, first + count)
    ]


def prepare(folder: Path) -> None:
    """Writes the files and directories that the configurations name."""
    Path(folder, "folder").mkdir()
    Path(folder, "folder", "inside").write_text("x")
    Path(folder, "file.txt").write_text("neither JSON nor YAML: [\n")
    row = {"question": "Half of 9?", "answer": "4.5", "completion": "That is \\boxed{9/2}."}
    _write(Path(folder, "completions.jsonl"), [row])
    _write(Path(folder, "traces.jsonl"), _traces(1, 6))
    _write(Path(folder, "others.jsonl"), _traces(11, 2))
    _write(Path(folder, "prompts.jsonl"), [{"prompt": f"{n}+{n}="} for n in range(1, 7)])
    steps = {"prompt": PUZZLE, "completions": ["3102", "2000"], "labels": [True, False]}
    _write(Path(folder, "steps.jsonl"), [steps] * 4)
    Path(folder, "log").mkdir()
    Path(folder, "log", "trainer_state.json").write_text(
        '{"log_history": [{"step": 1, "loss": 1.0}], "global_step": 1}'
    )
