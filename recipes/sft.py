"""Supervised fine-tuning of a diffusion language model, or of the autoregressive solver beside it.

    accelerate launch -m lockstitch.recipes.sft --config recipes/configs/embedded/sudoku.yaml

Everything of TRL's `SFTConfig` and `ModelConfig` can stand in the YAML or on the command line (which wins). Data is a data
set of prompts and completions or of conversations (`--dataset_name`, a hub name, a directory, or a `.jsonl`, `.json`, `.csv`
or `.parquet` file), a task's prompts with its gold solutions or answers (`--task`) or, for the embedded models, generated
(`--generate TASK`). `--use_peft` trains an adapter, which `lockstitch export` packs. A run that was interrupted goes on from
its last checkpoint when it is launched again.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstitch.errors import GOES_ON, one_line

if TYPE_CHECKING:
    from lockstitch.recipes.run_directory import Run

OBJECTIVES = ("diffusion", "autoregressive")
MANY = 200_000


@dataclass
class RecipeArguments:
    """What to train on, and what to start from."""

    objective: str = field(default="diffusion", metadata={"help": "'diffusion', or 'autoregressive' for the solver."})
    generate: str | None = field(
        default=None,
        metadata={
            "help": "Generate the rows of an embedded model: arithmetic, countdown, sudoku, sudoku9, or evidence."
        },
    )
    task: str | None = field(
        default=None,
        metadata={
            "help": "A task whose prompts and gold solutions or answers are trained on: a name that `lockstitch "
            "tasks` lists, a YAML file, file.py:attribute or module:attribute."
        },
    )
    task_source: str | None = field(
        default=None, metadata={"help": "Which of the task's sources; `train` by default."}
    )
    task_path: str | None = field(default=None, metadata={"help": "A file or folder to read the task's rows from."})
    prompt_form: str | None = field(
        default=None, metadata={"help": "How the task asks: tags, boxed, fenced or plain (default), as it has them."}
    )
    num_problems: int | None = field(
        default=None,
        metadata={
            "help": "How many rows to generate (of generate=TASK 200,000 by default); of a task with "
            "rows of its own, the first so many (default: all)."
        },
    )
    problem_seed: int = field(default=0, metadata={"help": "Seed of the generated rows."})
    family: str | None = field(
        default=None, metadata={"help": "How the model attends and predicts, if its config does not say."}
    )
    mask_id: int | None = field(default=None, metadata={"help": "Mask token, if the tokenizer does not say."})
    new_model: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Train from scratch: a mapping of LlamaConfig values (hidden_size, ...), or of GPT2Config's with "
            "model_type: gpt2, which with grid: 9 starts from the geometry of a Sudoku. Then model_name_or_path names "
            "the tokenizer."
        },
    )
    batch_by_length: bool = field(
        default=False,
        metadata={
            "help": "Put generated rows of about one length into one batch, batches in random order. Wants "
            "train_sampling_strategy: sequential."
        },
    )
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Prompts and completions, or conversations: a hub name, a directory or a file."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Its configuration on the hub."})
    columns: str | None = field(
        default=None, metadata={"help": "Its columns under other names: prompt:question,completion:solution."}
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Its split."})
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "Its split for evaluation, which eval_strategy asks for."}
    )
    num_eval_problems: int = field(
        default=0,
        metadata={"help": "How many held-out rows of generate=TASK are evaluated, if eval_strategy asks for it."},
    )

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective={self.objective!r} is not one of {', '.join(OBJECTIVES)}")
        given = [name for name in ("generate", "task", "dataset_name") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "say where the rows come from, once: generate=TASK, task=TASK or dataset_name=NAME (given: "
                f"{', '.join(given) or 'none'})"
            )
        for name in ("task_source", "task_path", "prompt_form"):
            if getattr(self, name) is not None and self.task is None:
                raise ValueError(f"{name}={getattr(self, name)!r} says what is asked of a task, and task=None")
        for name in ("dataset_config", "columns"):
            if getattr(self, name) is not None and self.dataset_name is None:
                raise ValueError(f"{name}={getattr(self, name)!r} is of dataset_name, which is missing")
        for name in ("family", "mask_id"):
            if getattr(self, name) is not None and (self.objective != "diffusion" or self.new_model is not None):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} says how a diffusion model is called that is loaded; "
                    "objective='autoregressive' and new_model have no use for it"
                )
        if self.num_problems is not None and self.dataset_name is not None:
            raise ValueError(f"num_problems={self.num_problems} would be ignored: all rows of dataset_name are taken")
        if self.num_problems is not None and self.num_problems < 1:
            raise ValueError(f"num_problems={self.num_problems} must be at least 1")
        if self.num_eval_problems < 0:
            raise ValueError(f"num_eval_problems={self.num_eval_problems} must be at least 0")
        if self.num_eval_problems and self.generate in (None, "evidence"):
            raise ValueError(
                f"num_eval_problems={self.num_eval_problems} takes held-out problems of an embedded model's "
                f"task; generate={self.generate!r} has none"
            )
        if self.dataset_test_split is not None and self.dataset_name is None:
            raise ValueError(
                f"dataset_test_split={self.dataset_test_split!r} is a split of dataset_name, which is missing"
            )


def own_rows(recipe: RecipeArguments, split: str) -> Any:
    """A split of the data that was named, its columns renamed."""
    from lockstitch.rewards.tasks.data import load_split, read_columns, renamed

    assert recipe.dataset_name is not None
    return renamed(load_split(recipe.dataset_name, split, recipe.dataset_config), read_columns(recipe.columns))


def task_rows(recipe: RecipeArguments, tokenizer: Any) -> Any:
    """The rows of a task as prompts and completions, conversations where the tokenizer has a template for them.

    Raises `ValueError` for a task without rows or without solutions, naming the first row that has none.
    """
    from datasets import Dataset
    from lockstitch.rewards.tasks.named import get_task
    from lockstitch.rewards.tasks.rows import load_rows
    from lockstitch.sampling.chat import Chat

    assert recipe.task is not None
    task = get_task(recipe.task)
    source = recipe.task_source or ("train" if "train" in task.sources else None)
    if source is None and task.sources and recipe.task_path is None:
        raise ValueError(
            f"task {task.name!r} has no rows to train on, only {', '.join(task.sources)} to measure on: "
            "task_source, if that is meant, or task_path"
        )
    made_up = recipe.task_path is None and task.source(source).generate is not None
    if recipe.num_problems is None and made_up:
        raise ValueError(f"task {task.name!r} makes its rows up: say how many (num_problems)")
    rows = load_rows(
        task,
        source=source,
        path=recipe.task_path,
        form=recipe.prompt_form or "plain",
        conversational=False,
        count=recipe.num_problems,
        seed=recipe.problem_seed,
    )
    chat = Chat.of(tokenizer, None, task.system)
    made: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        solution = task.solution(row)
        if solution is None:
            raise ValueError(f"row {number} of task {task.name!r} has no solution and no gold answer to train on")
        prompt = chat.messages(row["prompt"])
        completion = solution if isinstance(prompt, str) else [{"role": "assistant", "content": solution}]
        made.append({"prompt": prompt, "completion": completion})
    return Dataset.from_list(made)


def load_rows(recipe: RecipeArguments, training: Any, tokenizer: Any) -> Any:
    """The training rows as a `datasets.Dataset`: as they are, or generated and tokenized."""
    from datasets import Dataset
    from lockstitch.recipes.evidence import evidence_rows
    from lockstitch.recipes.tiny import batch_by_length, task_tokens, tokenize_rows
    from lockstitch.rewards.tasks.named import get_task

    if recipe.dataset_name is not None:
        return own_rows(recipe, recipe.dataset_train_split)
    if recipe.task is not None:
        return task_rows(recipe, tokenizer)
    assert recipe.generate is not None
    count = recipe.num_problems or MANY
    if recipe.generate == "evidence":
        tokenized = list(tokenize_rows(evidence_rows(count, recipe.problem_seed), tokenizer))
    else:
        tokenized = list(task_tokens(get_task(recipe.generate), count, recipe.problem_seed, tokenizer))
    if recipe.batch_by_length:
        tokenized = batch_by_length(tokenized, training.per_device_train_batch_size, recipe.problem_seed)
    return Dataset.from_list(tokenized)


def load_eval_rows(recipe: RecipeArguments, tokenizer: Any) -> Any:
    """The rows of the evaluation, or None; generated ones never meet the training rows."""
    from datasets import Dataset
    from lockstitch.recipes.tiny import task_tokens
    from lockstitch.rewards.tasks.named import get_task

    if recipe.dataset_test_split is not None:
        return own_rows(recipe, recipe.dataset_test_split)
    if recipe.num_eval_problems == 0:
        return None
    assert recipe.generate is not None
    task, count = get_task(recipe.generate), recipe.num_eval_problems
    return Dataset.from_list(list(task_tokens(task, count, recipe.problem_seed, tokenizer, held_out=True)))


def check(recipe: RecipeArguments, training: Any, model_arguments: Any) -> None:
    """Raises `ValueError` for settings of the recipe that do not go with those of the training or of the model."""
    if model_arguments.model_name_or_path is None:
        raise ValueError("model_name_or_path=None: say which model to train (with new_model, whose tokenizer it has)")
    if recipe.new_model is not None and model_arguments.use_peft:
        raise ValueError("use_peft trains an adapter of a model that others can load; new_model is trained whole")
    if recipe.batch_by_length and (recipe.generate is None or training.train_sampling_strategy != "sequential"):
        raise ValueError(
            "batch_by_length=True orders generated rows; it needs generate=TASK and train_sampling_strategy='sequential', "
            f"not generate={recipe.generate!r} and train_sampling_strategy={training.train_sampling_strategy!r}"
        )
    evaluated = recipe.dataset_test_split is not None or recipe.num_eval_problems > 0
    if evaluated != (training.eval_strategy != "no"):
        raise ValueError(
            f"eval_strategy={str(training.eval_strategy)!r} and the rows to evaluate (dataset_test_split or "
            "num_eval_problems) belong together: say both or neither"
        )
    if training.eval_on_start and not evaluated:
        raise ValueError("eval_on_start=True wants rows to evaluate: dataset_test_split or num_eval_problems")
    from lockstitch.rewards.tasks.data import FORMATS

    if recipe.dataset_test_split is not None and Path(recipe.dataset_name or "").suffix in FORMATS:
        raise ValueError(
            f"dataset_name={recipe.dataset_name!r} is one file, without splits: "
            "dataset_test_split needs a directory or a hub name"
        )


def prepare(recipe: RecipeArguments, training: Any, model_arguments: Any) -> "Run | None":
    """The recipe's trainer, ready to run; None where the run is finished already.

    Raises `ValueError` and `OSError` for what is the user's to mend.
    """
    from lockstitch.recipes.run_directory import is_finished, run_of
    from lockstitch.recipes.tiny import new_model
    from lockstitch.rewards.tasks.named import remembered
    from lockstitch.rl.checkpoints import WholeCheckpoints
    from lockstitch.rl.lora import loading_of, peft_config_of
    from lockstitch.rl.run_record import RunRecord, changed_settings
    from lockstitch.rl.sft import DiffusionSFTTrainer
    from lockstitch.sampling.adapter_files import find_adapter
    from lockstitch.sampling.adapters import load_plain, to_train_from
    from lockstitch.sampling.denoiser import Denoiser, make_causal
    from lockstitch.sampling.loading import layout_of, load_tokenizer, loaded_from
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTTrainer, get_peft_config

    class Solver(WholeCheckpoints, SFTTrainer):  # type: ignore[misc]
        """TRL's own trainer, with checkpoints that are whole or absent."""

    from lockstitch import model_name, model_path

    check(recipe, training, model_arguments)
    path = model_arguments.model_name_or_path = model_path(model_arguments.model_name_or_path)
    diffusion = recipe.objective == "diffusion"
    family = None
    if diffusion:
        named = recipe.new_model is None
        family = layout_of(path, recipe.family, model_arguments.model_revision)[0].name if named else "bidirectional"
    settings = changed_settings(recipe, training, model_arguments)
    task = recipe.generate or remembered(recipe.task)
    record = RunRecord(model_name(path), None, "sft", family, task, recipe.dataset_name, None, settings)
    if is_finished(Path(training.output_dir), record, training):
        return None
    loading = loading_of(model_arguments)
    if recipe.new_model is not None:
        with loaded_from(f"tokenizer {path!r}"):
            tokenizer = AutoTokenizer.from_pretrained(path)
        assert isinstance(recipe.new_model, dict)
        model = new_model(tokenizer, bidirectional=diffusion, seed=training.seed, **recipe.new_model)
    if diffusion:
        if recipe.new_model is not None:
            denoiser = Denoiser(model, tokenizer)
        else:
            denoiser = Denoiser.from_pretrained(
                path,
                family=recipe.family,
                mask_id=recipe.mask_id,
                device=training.device,
                trust_remote_code=training.trust_remote_code,
                **loading,
            )
            denoiser.model = to_train_from(denoiser.model, path)
        model, tokenizer = denoiser.model, denoiser.tokenizer
    elif recipe.new_model is None:
        with loaded_from(f"model {path!r}"):
            if find_adapter(path, model_arguments.model_revision) is None:
                model = AutoModelForCausalLM.from_pretrained(path, **loading)
            else:
                model = to_train_from(load_plain(path, **loading), path)
            model, tokenizer = make_causal(model), load_tokenizer(path, model_arguments.model_revision)
    rows = {"train_dataset": load_rows(recipe, training, tokenizer), "eval_dataset": load_eval_rows(recipe, tokenizer)}
    if diffusion:
        peft_config = peft_config_of(model_arguments, denoiser)
        trainer: Any = DiffusionSFTTrainer(denoiser, training, peft_config=peft_config, **rows)
    else:
        peft_config = get_peft_config(model_arguments)
        trainer = Solver(model=model, args=training, processing_class=tokenizer, peft_config=peft_config, **rows)

    return run_of(trainer, record, path, model_arguments.model_revision)


def run(prepared: "Run | None") -> None:
    """Trains what there is to train."""
    import torch

    if prepared is None:
        return
    with torch.random.fork_rng():
        prepared()
    prepared.trainer.accelerator.print(f"Model saved to {prepared.trainer.args.output_dir}")


def train(recipe: RecipeArguments, training: Any, model_arguments: Any) -> None:
    """Runs the recipe and saves the model to `training.output_dir`."""
    run(prepare(recipe, training, model_arguments))


def parse(argv: Sequence[str]) -> tuple[Any, Any, Any]:
    """Recipe, training and model arguments; `ValueError` for whatever is wrong with them."""
    from lockstitch.recipes.layers import config_file, parse_layers
    from lockstitch.rl.lora import DiffusionModelConfig
    from lockstitch.rl.sft_config import DiffusionSFTConfig
    from trl import SFTConfig, TrlParser

    from lockstitch.options import read_yaml, split_config

    # The solver is trained by TRL's own trainer, which must not be offered options that it would ignore.
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--objective")
    named, rest = split_config(argv)
    said = {} if named is None else read_yaml(config_file(named))
    objective = early.parse_known_args(rest)[0].objective or said.get("objective")
    config_class = SFTConfig if objective == "autoregressive" else DiffusionSFTConfig
    parser = TrlParser((RecipeArguments, config_class, DiffusionModelConfig), allow_abbrev=False)
    recipe, training, model_arguments = parse_layers(parser, argv)
    return recipe, training, model_arguments


def main() -> None:
    """Reads YAML and command line, then trains."""
    from lockstitch.recipes.run_directory import MISTAKES

    with one_line("sft"):
        prepared = prepare(*parse(sys.argv[1:]))
    with one_line("sft", f"interrupted; {GOES_ON}", MISTAKES):
        run(prepared)


if __name__ == "__main__":
    main()
