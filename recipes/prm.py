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

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstitch.recipes.prm_arguments import FEATURES, RecipeArguments, check_evaluation, check_features

from lockstitch.errors import GOES_ON, one_line

if TYPE_CHECKING:
    from lockstitch.recipes.run_directory import Run

LABELS = "labels"
LEFT_OUT = "left out"  # the rows of no split: what they cost counts


def parse(argv: Sequence[str]) -> tuple[Any, ...]:
    """The recipe's arguments, the trainer's and the model's; `ValueError` for what nobody knows."""
    from lockstitch.recipes.layers import parse_layers
    from lockstitch.recipes.step_training import StepRewardConfig
    from lockstitch.rl.lora import DiffusionModelConfig
    from trl import TrlParser

    return parse_layers(TrlParser((RecipeArguments, StepRewardConfig, DiffusionModelConfig), allow_abbrev=False), argv)


def labelled(recipe: RecipeArguments, output: Path, training: Any) -> dict[str, list[dict[str, Any]]]:
    """The rows of each split, labelled now or in an earlier launch."""
    from dataclasses import replace

    from lockstitch.recipes.prm_data import problems_of
    from lockstitch.recipes.run_directory import is_first
    from lockstitch.recipes.step_labels import Labelling, label_problems, write_labels
    from lockstitch.rewards.tasks.named import get_task, remembered
    from lockstitch.sampling.chat import Chat
    from lockstitch.sampling.config import SamplerConfig
    from lockstitch.sampling.denoiser import Denoiser
    from lockstitch.sampling.layouts import in_blocks_of
    from lockstitch.sampling.noise import derive_seed
    from lockstitch.stitching.score import load_scorer, scorer_parts
    from tqdm import tqdm

    from lockstitch import files
    from lockstitch.contents import sums_of_models

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
    said["task"] = remembered(recipe.task)
    if models := sums_of_models(recipe.label_model, recipe.completion_model):
        said["models"] = models
    if training.world_size > 1 and any(
        len(files.finished_rows(output / LABELS / split / files.RESULTS)) < len(wanted) * labelling.trajectories
        for split, wanted in problems.items()
    ):
        raise ValueError(
            "labels are made by one process: launch with --labels_only true and without accelerate, then train"
        )
    device = str(training.device)
    denoiser = Denoiser.from_pretrained(recipe.label_model, device=device)
    denoiser.chat = Chat.of(denoiser.tokenizer, recipe.chat_template, recipe.system_prompt)
    completer = denoiser
    if recipe.completion_model is not None:
        completer = Denoiser.from_pretrained(recipe.completion_model, device=device)
    completer.chat = denoiser.chat
    for part in dict.fromkeys(part for scorer in recipe.scorers or () for part in scorer_parts(scorer)):
        # Refusals are not to wait for the end of the training.
        load_scorer(part, task, denoiser=denoiser, device=device)
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
        if is_first(training):  # the other processes only read what there is
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
    from lockstitch.recipes.prm_data import check_fitted_on, own_rows
    from lockstitch.recipes.read_files import contents_of
    from lockstitch.recipes.run_directory import is_finished, run_of
    from lockstitch.recipes.step_judging import try_scorers
    from lockstitch.recipes.step_training import StepCollator, StepRewardTrainer, check_lengths, encode_rows
    from lockstitch.rewards.tasks.named import get_task, remembered
    from lockstitch.rl.lora import loading_of
    from lockstitch.rl.run_record import RunRecord, changed_settings
    from lockstitch.sampling.chat import Chat
    from lockstitch.sampling.loading import load_tokenizer
    from lockstitch.stitching.step_reader import Reader, as_step_classifier, attention_of, check_takes_head, load_body
    from lockstitch.stitching.verifier import FILE as VERIFIER
    from transformers import set_seed

    from lockstitch import model_name, model_path

    output = Path(training.output_dir)
    if recipe.task is not None and recipe.system_prompt is None and model_arguments.model_name_or_path != FEATURES:
        recipe.system_prompt = get_task(recipe.task).system
    if model_arguments.model_name_or_path is None and not recipe.labels_only:
        raise ValueError("model_name_or_path=None: say which model to train, the one that is labelled for example")
    if model_arguments.model_name_or_path == FEATURES and not recipe.labels_only:
        from lockstitch.recipes.trace_labels import fit_on_features

        check_features(recipe, training, model_arguments)
        return None, fit_on_features(output, recipe), FEATURES
    check_evaluation(recipe, training)
    if (output / VERIFIER).is_file():
        raise ValueError(
            f"output_dir={str(output)!r} holds a verifier of model_name_or_path={FEATURES!r}; choose another"
        )
    if recipe.labels_only:
        return None, labelled(recipe, output, training), None
    path = model_arguments.model_name_or_path = model_path(model_arguments.model_name_or_path)
    settings = changed_settings(recipe, training, model_arguments)
    task = remembered(recipe.task)
    contents = contents_of(recipe, Path(training.output_dir))
    record = RunRecord(
        model_name(path), None, "prm", None, task, recipe.dataset_name, None, settings, contents=contents
    )
    # What is wrong with the model is not to be found after hours of labelling.
    attention = attention_of(path, recipe.attention, recipe.family, model_arguments.model_revision)
    check_takes_head(path, model_arguments.model_revision)
    tokenizer = load_tokenizer(path, model_arguments.model_revision)
    chat = Chat.of(tokenizer, recipe.chat_template, recipe.system_prompt)
    trained_on = None if recipe.task is None else get_task(recipe.task).name
    reader = Reader(attention, recipe.step_separator, chat.template, chat.system, trained_on, recipe.family)
    finished = is_finished(output, record, training)
    if recipe.traces is not None:
        from lockstitch.recipes.trace_labels import as_models_read, labelled_traces

        rows = as_models_read(labelled_traces(recipe), get_task(str(recipe.task)))
    else:
        rows = labelled(recipe, output, training) if recipe.task is not None else own_rows(recipe)
    check_fitted_on(recipe, rows)
    encoded, rows[LEFT_OUT] = {}, []
    for split in ["train", *(["test"] if rows["test"] else [])]:
        encoded[split], rows[split], long = encode_rows(rows[split], tokenizer, reader, training.max_length)
        rows[LEFT_OUT] += long  # which are not judged, either
    for row in rows["train"]:  # whose traces nobody reads any more, and which are the most of a row
        row.pop("trajectory", None)
    if finished:
        return None, rows, Reader.beside(str(output))
    try_scorers(recipe, rows, str(training.device))
    body, _, _ = load_body(
        path, recipe.attention, recipe.family, device=training.device, **loading_of(model_arguments)
    )
    check_lengths(encoded, body, training.max_length)
    model: Any = as_step_classifier(body, attention, training.seed)
    if model_arguments.use_peft:
        set_seed(training.seed)  # which an adapter's first weights are drawn from
        model = adapted(model, model_arguments, path)
    trainer = StepRewardTrainer(
        model=model,
        args=training,
        processing_class=tokenizer,
        train_dataset=encoded["train"],
        eval_dataset=encoded.get("test"),
        data_collator=StepCollator(reader, model.dtype),
    )
    trainer.reader = reader
    if recipe.save_dtype is not None:
        import torch

        trainer.save_dtype = getattr(torch, recipe.save_dtype)
    return run_of(trainer, record, path, model_arguments.model_revision), rows, reader


def adapted(model: Any, arguments: Any, base: str) -> Any:
    """The classifier with an adapter of its blocks; the head is trained whole."""
    from lockstitch.rl.lora import peft_config_of
    from peft import get_peft_model

    settings: dict[str, Any] = {"task_type": "TOKEN_CLS", "base_model_name_or_path": base}
    config = peft_config_of(arguments, model, saved=("score",), **settings)
    model.config._name_or_path = base
    return get_peft_model(model, config)


def main() -> None:
    """Parses YAML and command line, labels, trains and judges."""
    with one_line("prm", f"interrupted; {GOES_ON}"):
        # Seconds of imports, in which Ctrl-C may come.
        from lockstitch.recipes.run_directory import MISTAKES, is_first, leaving_nothing

        recipe, training, model_arguments = parse(sys.argv[1:])
        with leaving_nothing(Path(training.output_dir)):
            prepared, rows, reader = prepare(recipe, training, model_arguments)
    with one_line("prm", f"interrupted; {GOES_ON}", MISTAKES):
        if prepared is not None:
            prepared()
    with one_line("prm", f"interrupted; {GOES_ON}"):
        from lockstitch.recipes.step_judging import judge

        output = Path(training.output_dir)
        if reader is None:
            print(f"Labels saved to {output / LABELS}")
        elif is_first(training):
            judge(recipe, output, rows, is_verifier=reader == FEATURES, device=str(training.device))


if __name__ == "__main__":
    main()
