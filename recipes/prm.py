"""A process reward model of one's own: steps labelled by completion, a head trained on them, and how far it can be trusted.

    lockstitch prm --config tiny/prm_sudoku.yaml
    accelerate launch -m lockstitch.recipes.prm --config tiny/prm_sudoku.yaml
    lockstitch prm --task gsm8k --input train.jsonl --eval_input test.jsonl --label_model GSAI-ML/LLaDA-8B-Instruct ...
    lockstitch prm --task gsm8k --traces a.jsonl --eval_traces b.jsonl --model_name_or_path features --output_dir runs/a
    lockstitch prm --dataset_name steps.jsonl --model_name_or_path MODEL --output_dir runs/mine

Three stages, each of which goes on where it stopped. Trajectories of `label_model` are labelled (`step_labels.py`; into
`OUTPUT/labels`, in TRL's form of stepwise supervision), unless `--dataset_name` has labels already, or `--traces` come from
elsewhere and are labelled by their answers (`trace_labels.py`). `model_name_or_path` is trained on them under a new head
(`step_training.py`); `features` in its place is a regression on what can be counted in traces of arithmetic. The result is
judged on rows that it was not trained on (`step_judging.py`): `summary.json` has AUC and calibration against the labels, the
task's exact checker and the answers, `calibration.html` draws them. `lockstitch stitch --scorer prm:OUTPUT` (or
`verifier:OUTPUT`) then scores with it.

Beside the options below there are all of transformers' `TrainingArguments` and of TRL's `ModelConfig`; `--use_peft true`
trains an adapter and the head.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstitch.errors import GOES_ON, one_line

if TYPE_CHECKING:
    from lockstitch.recipes.run_directory import Run

LABELS = "labels"
FEATURES = "features"  # in the place of a model: a regression on what can be counted
DTYPES = ("float32", "float16", "bfloat16")
SPLITS = ("train", "fit", "test")
OF_COMPLETION = (
    "label_model",
    "completion_model",
    "input",
    "eval_input",
    "num_problems",
    "num_eval_problems",
    "scorers",
    "canvas_length",
    "block_length",
    "steps",
    "completion_steps",
)


@dataclass
class RecipeArguments:
    """What is labelled, how, what is trained on it, and what it is judged by."""

    task: str | None = field(
        default=None, metadata={"help": "The task whose steps are labelled, as `lockstitch stitch` has it."}
    )
    label_model: str | None = field(
        default=None, metadata={"help": "The diffusion model that writes the trajectories."}
    )
    completion_model: str | None = field(
        default=None,
        metadata={"help": "The one that completes their prefixes (default: the same), with the same tokens."},
    )
    input: str | None = field(
        default=None,
        metadata={"help": "Problems to label, a file as `lockstitch stitch` reads it; by default they are made up."},
    )
    eval_input: str | None = field(default=None, metadata={"help": "Problems to judge on, where `input` is a file."})
    num_problems: int | None = field(
        default=None, metadata={"help": "Problems to train on: 1000 made up, or all of the file but those to fit on."}
    )
    num_eval_problems: int | None = field(
        default=None,
        metadata={"help": "Problems to judge on: 200 made up, on the other side of the split, or all of the file."},
    )
    num_fit_problems: int = field(
        default=0, metadata={"help": "Further training problems on which weights of sums among `scorers` are fitted."}
    )
    problem_seed: int = field(default=0, metadata={"help": "Seed of problems and of the noise of their trajectories."})
    num_trajectories: int = field(default=4, metadata={"help": "Trajectories of each problem."})
    num_completions: int = field(default=8, metadata={"help": "k, completions of each prefix."})
    label: str = field(
        default="soft", metadata={"help": "soft: the share of completions that end right; hard: whether any does."}
    )
    canvas_length: int | None = field(default=None, metadata={"help": "Tokens of the canvas (default: the task's)."})
    block_length: int | None = field(
        default=None, metadata={"help": "Positions denoised together (default: the model's)."}
    )
    steps: int | None = field(default=None, metadata={"help": "Denoising steps (default: four tokens a step)."})
    completion_steps: int | None = field(
        default=None, metadata={"help": "Those of the completions (default: as steps)."}
    )
    temperature: float = field(default=0.7, metadata={"help": "Of trajectories and completions."})
    chat_template: bool | None = field(
        default=None,
        metadata={"help": "Whether prompts go through the tokenizer's chat template; by default if it has one."},
    )
    system_prompt: str | None = field(default=None, metadata={"help": "What every conversation begins with."})
    sample_batch_size: int = field(default=256, metadata={"help": "Most rows in one pass of the sampler."})
    chunk: int = field(default=25, metadata={"help": "Problems labelled together; rows are saved after each chunk."})
    traces: str | None = field(
        default=None,
        metadata={
            "help": "Completions from elsewhere, a file as `lockstitch stitch --trajectories` reads it: each step is "
            "labelled by whether its completion's answer is right."
        },
    )
    eval_traces: str | None = field(default=None, metadata={"help": "Such completions to judge on."})
    labels_only: bool = field(default=False, metadata={"help": "Label, and train nothing."})
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Labelled steps that there are: `prompt`, `completions`, `labels`, as TRL has them; a hub name, a "
            "directory or a file."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Its configuration on the hub."})
    columns: str | None = field(default=None, metadata={"help": "Its columns under other names: completions:steps."})
    dataset_train_split: str = field(default="train", metadata={"help": "Its split to train on."})
    dataset_test_split: str | None = field(default=None, metadata={"help": "Its split to judge on."})
    family: str | None = field(
        default=None, metadata={"help": "How the trained model attends and predicts, if its config does not say."}
    )
    attention: str | None = field(
        default=None,
        metadata={
            "help": "What a step's tokens see: causal, steps (nothing after the step) or full. Default: steps for "
            "diffusion models that attend fully, causal for others."
        },
    )
    step_separator: str = field(
        default="\n", metadata={"help": "Follows every step; its last token is where a step is scored."}
    )
    save_dtype: str | None = field(
        default=None,
        metadata={"help": "What the finished model is saved in: float32, float16, bfloat16; None: as trained."},
    )
    scorers: list[str] | None = field(
        default=None,
        metadata={
            "help": "Other scorers to judge on the same rows, as `lockstitch stitch --scorer` names them; a sum (a+b) "
            "gets weights fitted on num_fit_problems, saved as scorer_weights.json."
        },
    )

    def __post_init__(self) -> None:
        if (self.task is None) == (self.dataset_name is None):
            raise ValueError("say where labelled steps come from: either task=NAME, to label, or dataset_name=NAME")
        if self.task is None:
            for name in OF_COMPLETION:
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}={getattr(self, name)!r} is of labelling a task, and task=None")
            if self.labels_only or self.num_fit_problems:
                raise ValueError("labels_only and num_fit_problems are of labelling a task, and task=None")
        elif self.traces is not None:
            from lockstitch.recipes.trace_labels import check_traces

            check_traces(self, (*OF_COMPLETION, "labels_only", "num_fit_problems"))
        elif self.label_model is None:
            raise ValueError("label_model=None: say which diffusion model writes and completes the trajectories")
        else:
            for name in ("dataset_config", "columns", "dataset_test_split"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}={getattr(self, name)!r} is of dataset_name, which is missing")
        if self.eval_traces is not None and self.traces is None:
            raise ValueError(f"eval_traces={self.eval_traces!r} goes with traces, which is missing")
        if self.traces is not None and self.task is None:
            raise ValueError(f"traces={self.traces!r} are of a task: say which, task=NAME")
        if self.eval_input is not None and self.input is None:
            raise ValueError(
                f"eval_input={self.eval_input!r} goes with input, which is missing: made-up problems have "
                "held-out ones"
            )
        for name, least in (
            ("num_problems", 1),
            ("num_eval_problems", 0),
            ("num_fit_problems", 0),
            ("sample_batch_size", 1),
            ("chunk", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if self.num_completions > 1 and not self.temperature > 0:
            raise ValueError(
                f"temperature={self.temperature}: all num_completions={self.num_completions} would be the same"
            )
        if self.save_dtype is not None and self.save_dtype not in DTYPES:
            raise ValueError(f"save_dtype={self.save_dtype!r} is not one of {', '.join(DTYPES)}")
        from lockstitch.recipes.step_labels import Labelling
        from lockstitch.stitching.score import scorer_parts

        Labelling(self.num_trajectories, self.num_completions, self.label)
        sums = [scorer for scorer in self.scorers or () if len(scorer_parts(scorer)) > 1]
        if bool(sums) != bool(self.num_fit_problems):
            raise ValueError(
                f"num_fit_problems={self.num_fit_problems} and sums in scorers ({', '.join(sums) or 'none'}) "
                "belong together: weights are fitted on these"
            )


def parse(argv: Sequence[str]) -> tuple[Any, ...]:
    """The recipe's arguments, the trainer's and the model's; `ValueError` for what nobody knows."""
    from lockstitch.recipes.layers import parse_layers
    from lockstitch.recipes.step_training import StepRewardConfig
    from lockstitch.rl.lora import DiffusionModelConfig
    from trl import TrlParser

    return parse_layers(TrlParser((RecipeArguments, StepRewardConfig, DiffusionModelConfig)), argv)


def labelled(recipe: RecipeArguments, output: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each split, labelled now or in an earlier launch."""
    from dataclasses import replace

    from lockstitch.recipes.prm_data import problems_of
    from lockstitch.recipes.step_labels import Labelling, label_problems, write_labels
    from lockstitch.rewards.tasks.named import get_task
    from lockstitch.sampling.chat import Chat
    from lockstitch.sampling.config import SamplerConfig
    from lockstitch.sampling.denoiser import Denoiser
    from lockstitch.sampling.layouts import in_blocks_of
    from lockstitch.sampling.noise import derive_seed
    from tqdm import tqdm

    from lockstitch import files

    assert recipe.task is not None
    assert recipe.label_model is not None
    task = get_task(recipe.task)
    problems = problems_of(recipe, task)
    canvas = recipe.canvas_length or task.canvas_length
    if canvas is None:
        raise ValueError(f"task {task.name!r} has no canvas length of its own: say --canvas_length")
    labelling = Labelling(recipe.num_trajectories, recipe.num_completions, recipe.label)
    free = ("scorers", "save_dtype", "attention", "family", "step_separator", "sample_batch_size", "chunk", "labels_only",
            "num_problems", "num_eval_problems", "num_fit_problems")  # fmt: skip
    said = {name: value for name, value in asdict(recipe).items() if name not in free}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and any(
        len(files.finished_rows(output / LABELS / split / files.RESULTS)) < len(wanted) * labelling.trajectories
        for split, wanted in problems.items()
    ):
        raise ValueError(
            "labels are made by one process: launch with --labels_only true and without accelerate, then train"
        )
    denoiser = Denoiser.from_pretrained(recipe.label_model)
    denoiser.chat = Chat.of(denoiser.tokenizer, recipe.chat_template, recipe.system_prompt)
    completer = denoiser if recipe.completion_model is None else Denoiser.from_pretrained(recipe.completion_model)
    completer.chat = denoiser.chat
    config = in_blocks_of(
        SamplerConfig(
            canvas, recipe.block_length, temperature=recipe.temperature, batch_size=recipe.sample_batch_size
        ),
        denoiser.family,
    )
    config = replace(config, steps=recipe.steps or max(config.blocks, canvas // 4 // config.blocks * config.blocks))
    completing = replace(config, steps=recipe.completion_steps or config.steps)
    rows = {}
    for place, (split, wanted) in enumerate(problems.items()):
        directory = output / LABELS / split
        files.claim_directory(directory, {**said, "split": split})

        def label(part: Any, first: int, place: int = place) -> list[dict[str, Any]]:
            seeds = [derive_seed(recipe.problem_seed, place, first + i) for i in range(len(part))]
            return label_problems(denoiser, task, part, config, labelling, seeds, completer, completing)

        total = len(wanted) * labelling.trajectories
        with tqdm(total=total, desc=f"labels, {split}", unit="trajectory", disable=None) as bar:
            rows[split] = write_labels(directory, wanted, label, labelling.trajectories, recipe.chunk, bar.update)
    return rows


def prepare(recipe: RecipeArguments, training: Any, model_arguments: Any) -> "tuple[Run | None, dict[str, Any], Any]":
    """The run, ready to go or None where it is finished, the rows of each split, and how the model reads."""
    from lockstitch.recipes.prm_data import own_rows
    from lockstitch.recipes.run_directory import is_finished, run_of
    from lockstitch.recipes.step_training import StepCollator, StepRewardTrainer, encode_rows
    from lockstitch.rl.lora import loading_of
    from lockstitch.rl.run_record import RunRecord, changed_settings
    from lockstitch.sampling.chat import Chat
    from lockstitch.stitching.step_reader import Reader, as_step_classifier, load_body

    from lockstitch import model_name, model_path

    output = Path(training.output_dir)
    if model_arguments.model_name_or_path is None and not recipe.labels_only:
        raise ValueError("model_name_or_path=None: say which model to train, the one that is labelled for example")
    if recipe.labels_only:
        return None, labelled(recipe, output), None
    if model_arguments.model_name_or_path == FEATURES:
        from lockstitch.recipes.trace_labels import fit_on_features

        return None, fit_on_features(output, recipe), FEATURES
    path = model_arguments.model_name_or_path = model_path(model_arguments.model_name_or_path)
    settings = changed_settings(recipe, training, model_arguments)
    record = RunRecord(model_name(path), None, "prm", None, recipe.task, recipe.dataset_name, None, settings)
    finished = is_finished(output, record, training)
    if recipe.traces is not None:
        from lockstitch.recipes.trace_labels import labelled_traces

        rows = labelled_traces(recipe)
    else:
        rows = labelled(recipe, output) if recipe.task is not None else own_rows(recipe)
    if finished:
        return None, rows, Reader.beside(str(output))
    body, tokenizer, attention = load_body(
        path, recipe.attention, recipe.family, device=training.device, **loading_of(model_arguments)
    )
    chat = Chat.of(tokenizer, recipe.chat_template, recipe.system_prompt)
    reader = Reader(attention, recipe.step_separator, chat.template, chat.system)
    model: Any = as_step_classifier(body, attention, training.seed)
    if model_arguments.use_peft:
        model = adapted(model, model_arguments, path)
    encoded = encode_rows(rows["train"], tokenizer, reader, training.max_length)
    trainer = StepRewardTrainer(
        model=model,
        args=training,
        processing_class=tokenizer,
        train_dataset=encoded,
        eval_dataset=encode_rows(rows["test"], tokenizer, reader, training.max_length) if rows["test"] else None,
        data_collator=StepCollator(reader, model.dtype),
    )
    trainer.reader = reader
    if recipe.save_dtype is not None:
        import torch

        trainer.save_dtype = getattr(torch, recipe.save_dtype)
    return run_of(trainer, record, path, model_arguments.model_revision), rows, reader


def adapted(model: Any, arguments: Any, base: str) -> Any:
    """The classifier with an adapter of its blocks; the head is trained whole."""
    from lockstitch.rl.lora import default_targets
    from lockstitch.sampling.lora_targets import block_modules, target_pattern
    from peft import LoraConfig, get_peft_model

    wanted = arguments.lora_target_modules or default_targets(model)
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    there = {name.rpartition(".")[2] for name in block_modules(model)}
    missing = [] if wanted == ["all-linear"] else [name for name in wanted if name.rpartition(".")[2] not in there]
    if missing:
        raise ValueError(
            f"lora_target_modules: {', '.join(missing)} matches nothing; there are {', '.join(sorted(there))}"
        )
    config = LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        task_type="TOKEN_CLS",
        target_modules=target_pattern(there if wanted == ["all-linear"] else wanted),
        modules_to_save=["score"],
        use_rslora=arguments.use_rslora,
        use_dora=arguments.use_dora,
        base_model_name_or_path=base,
    )
    model.config._name_or_path = base
    return get_peft_model(model, config)


def main() -> None:
    """Parses YAML and command line, labels, trains and judges."""
    from lockstitch.rl.checkpoints import NotFiniteError

    with one_line("prm", f"interrupted; {GOES_ON}"):
        recipe, training, model_arguments = parse(sys.argv[1:])
        prepared, rows, reader = prepare(recipe, training, model_arguments)
    with one_line("prm", f"interrupted; {GOES_ON}", NotFiniteError):
        if prepared is not None:
            prepared()
    with one_line("prm", f"interrupted; {GOES_ON}"):
        from lockstitch.recipes.step_judging import judge

        output = Path(training.output_dir)
        if reader is None:
            print(f"Labels saved to {output / LABELS}")
        elif int(os.environ.get("RANK", "0")) == 0:
            judge(recipe, output, rows)


if __name__ == "__main__":
    main()
