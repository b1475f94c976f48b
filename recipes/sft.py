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

from lockstitch.recipes.sft_data import DataArguments, check_data, load_eval_rows, load_rows

from lockstitch.errors import GOES_ON, one_line

if TYPE_CHECKING:
    from lockstitch.recipes.run_directory import Run

OBJECTIVES = ("diffusion", "autoregressive")


@dataclass
class RecipeArguments(DataArguments):
    """What to train on, and what to start from."""

    objective: str = field(default="diffusion", metadata={"help": "'diffusion', or 'autoregressive' for the solver."})
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

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective={self.objective!r} is not one of {', '.join(OBJECTIVES)}")
        super().__post_init__()
        for name in ("family", "mask_id"):
            if getattr(self, name) is not None and (self.objective != "diffusion" or self.new_model is not None):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} says how a diffusion model is called that is loaded; "
                    "objective='autoregressive' and new_model have no use for it"
                )


def check(recipe: RecipeArguments, training: Any, model_arguments: Any) -> None:
    """Raises `ValueError` for settings of the recipe that do not go with those of the training or of the model."""
    if model_arguments.model_name_or_path is None:
        raise ValueError("model_name_or_path=None: say which model to train (with new_model, whose tokenizer it has)")
    if recipe.new_model is not None and model_arguments.use_peft:
        raise ValueError("use_peft trains an adapter of a model that others can load; new_model is trained whole")
    check_data(recipe, training)


def prepare(recipe: RecipeArguments, training: Any, model_arguments: Any) -> "Run | None":
    """The recipe's trainer, ready to run; None where the run is finished already.

    Raises `ValueError` and `OSError` for what is the user's to mend.
    """
    from lockstitch.recipes.read_files import contents_of
    from lockstitch.recipes.run_directory import is_finished, run_of
    from lockstitch.recipes.tiny import new_model
    from lockstitch.rewards.tasks.named import remembered
    from lockstitch.rl.canvas_data import check_completions, check_template
    from lockstitch.rl.checkpoints import WholeCheckpoints
    from lockstitch.rl.lora import loading_of, peft_config_of
    from lockstitch.rl.packing import check_block_length
    from lockstitch.rl.run_record import RunRecord, changed_settings
    from lockstitch.rl.sft import DiffusionSFTTrainer
    from lockstitch.sampling.adapter_files import find_adapter
    from lockstitch.sampling.adapters import load_plain, to_train_from
    from lockstitch.sampling.denoiser import Denoiser, check_loadable, make_causal
    from lockstitch.sampling.families import BIDIRECTIONAL
    from lockstitch.sampling.loading import layout_of, load_tokenizer, loaded_from
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTTrainer

    class Solver(WholeCheckpoints, SFTTrainer):  # type: ignore[misc]
        """TRL's own trainer, with checkpoints that are whole or absent."""

    from lockstitch import model_name, model_path

    check(recipe, training, model_arguments)
    path = model_arguments.model_name_or_path = model_path(model_arguments.model_name_or_path)
    diffusion = recipe.objective == "diffusion"
    revision, family = model_arguments.model_revision, None
    if diffusion:
        known, raw = BIDIRECTIONAL, None
        if recipe.new_model is None:
            known, raw = layout_of(path, recipe.family, revision)
            check_loadable(path, known, raw, training.trust_remote_code)
        block = known.block_length if training.block_length is None else training.block_length
        check_block_length(known, block, training.canvas_length)
        family = known.name
    settings = changed_settings(recipe, training, model_arguments)
    task = "evidence" if recipe.generate == "evidence" else remembered(recipe.generate or recipe.task)
    contents = contents_of(recipe, Path(training.output_dir))
    record = RunRecord(
        model_name(path), None, "sft", family, task, recipe.dataset_name, None, settings, contents=contents
    )
    if is_finished(Path(training.output_dir), record, training):
        return None
    if recipe.new_model is not None:
        with loaded_from(f"tokenizer {path!r}"):
            tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
        assert isinstance(recipe.new_model, dict)
        model = new_model(tokenizer, bidirectional=diffusion, seed=training.seed, **recipe.new_model)
    else:
        tokenizer = load_tokenizer(path, revision, diffusion and training.trust_remote_code)
    rows = {"train_dataset": load_rows(recipe, training, tokenizer), "eval_dataset": load_eval_rows(recipe, tokenizer)}
    template = tokenizer.chat_template is not None or training.chat_template_path is not None
    for name, some in rows.items():
        if some is not None and diffusion:
            check_completions(some, name.removesuffix("_dataset"), template)
        elif some is not None and not template:
            check_template(some, name.removesuffix("_dataset"))
    loading = loading_of(model_arguments)
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
    elif recipe.new_model is None:
        with loaded_from(f"model {path!r}"):
            if find_adapter(path, revision) is None:
                model = AutoModelForCausalLM.from_pretrained(path, **loading)
            else:
                model = to_train_from(load_plain(path, **loading), path)
            model = make_causal(model)
    peft_config = peft_config_of(model_arguments, denoiser if diffusion else model)
    if diffusion:
        trainer: Any = DiffusionSFTTrainer(denoiser, training, peft_config=peft_config, **rows)
    else:
        trainer = Solver(model=model, args=training, processing_class=tokenizer, peft_config=peft_config, **rows)

    return run_of(trainer, record, path, revision)


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
    from lockstitch.rl.sft_config import CheckedSFTConfig, DiffusionSFTConfig
    from trl import TrlParser

    from lockstitch.options import read_yaml, split_config

    # The solver is trained by TRL's own trainer, which must not be offered options that it would ignore.
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--objective")
    named, rest = split_config(argv)
    said = {} if named is None else read_yaml(config_file(named))
    objective = early.parse_known_args(rest)[0].objective or said.get("objective")
    config_class = CheckedSFTConfig if objective == "autoregressive" else DiffusionSFTConfig
    parser = TrlParser((RecipeArguments, config_class, DiffusionModelConfig), allow_abbrev=False)
    recipe, training, model_arguments = parse_layers(parser, argv)
    return recipe, training, model_arguments


def main() -> None:
    """Reads YAML and command line, then trains."""
    with one_line("sft"):
        # Seconds of imports, in which Ctrl-C may come.
        from lockstitch.recipes.run_directory import MISTAKES, leaving_nothing

        recipe, training, model_arguments = parse(sys.argv[1:])
        with leaving_nothing(Path(training.output_dir)):
            prepared = prepare(recipe, training, model_arguments)
    with one_line("sft", f"interrupted; {GOES_ON}", MISTAKES):
        run(prepared)


if __name__ == "__main__":
    main()
