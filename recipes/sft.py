"""Supervised fine-tuning of a diffusion language model, or of the autoregressive solver beside it.

    accelerate launch -m lockstitch.recipes.sft --config recipes/configs/tiny/sudoku.yaml

Everything of TRL's `SFTConfig` and `ModelConfig` can stand in the YAML or on the command line (which wins). Data is a
prompt-completion data set (`--dataset_name`, a hub name or local files) or, for the embedded models, generated
(`--generate TASK`). A run that was interrupted goes on from its last checkpoint when it is launched again.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OBJECTIVES = ("diffusion", "autoregressive")


@dataclass
class RecipeArguments:
    """What to train on, and what to start from."""

    objective: str = field(
        default="diffusion", metadata={"help": "'diffusion', or 'autoregressive' for the solver."}
    )
    generate: str | None = field(
        default=None,
        metadata={"help": "Generate the rows of an embedded model: arithmetic, countdown, sudoku, or evidence."},
    )
    num_problems: int = field(default=200_000, metadata={"help": "How many rows to generate."})
    problem_seed: int = field(default=0, metadata={"help": "Seed of the generated rows."})
    new_model: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Train from scratch: a mapping of LlamaConfig values (hidden_size, ...). Then "
                          "model_name_or_path names the tokenizer."},
    )
    batch_by_length: bool = field(
        default=False,
        metadata={"help": "Put generated rows of about one length into one batch, batches in random order. Wants "
                          "train_sampling_strategy: sequential."},
    )
    dataset_name: str | None = field(default=None, metadata={"help": "A prompt-completion data set."})
    dataset_train_split: str = field(default="train", metadata={"help": "Its split."})

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective={self.objective!r} is not one of {', '.join(OBJECTIVES)}")
        if (self.generate is None) == (self.dataset_name is None):
            raise ValueError("say where the rows come from: either generate=TASK or dataset_name=NAME")
        if self.num_problems < 1:
            raise ValueError(f"num_problems={self.num_problems} must be at least 1")


def load_rows(recipe: RecipeArguments, training: Any, tokenizer: Any) -> Any:
    """The training rows as a `datasets.Dataset`: as they are, or generated and tokenized."""
    from datasets import Dataset, load_dataset
    from lockstitch.recipes.evidence import evidence_rows
    from lockstitch.recipes.tiny import batch_by_length, prompt_completion_rows, tokenize_rows
    from lockstitch.rewards.tasks import get_task

    if recipe.dataset_name is not None:
        return load_dataset(recipe.dataset_name, split=recipe.dataset_train_split)
    assert recipe.generate is not None
    if recipe.generate == "evidence":
        rows = evidence_rows(recipe.num_problems, recipe.problem_seed)
    else:
        rows = prompt_completion_rows(get_task(recipe.generate), recipe.num_problems, recipe.problem_seed)
    tokenized = list(tokenize_rows(rows, tokenizer))
    if recipe.batch_by_length:
        tokenized = batch_by_length(tokenized, training.per_device_train_batch_size, recipe.problem_seed)
    return Dataset.from_list(tokenized)


def train(recipe: RecipeArguments, training: Any, model_arguments: Any) -> None:
    """Runs the recipe and saves the model to `training.output_dir`."""
    import torch
    from lockstitch.recipes.tiny import new_model
    from lockstitch.rl.sft import DiffusionSFTTrainer
    from lockstitch.sampling.denoiser import Denoiser, make_causal
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.trainer_utils import get_last_checkpoint
    from trl import SFTTrainer, get_peft_config

    if recipe.batch_by_length and (recipe.generate is None or training.train_sampling_strategy != "sequential"):
        raise ValueError(
            "batch_by_length=True orders generated rows; it needs generate=TASK and train_sampling_strategy='sequential', "
            f"not generate={recipe.generate!r} and train_sampling_strategy={training.train_sampling_strategy!r}"
        )
    path = model_arguments.model_name_or_path
    diffusion = recipe.objective == "diffusion"
    dtype = model_arguments.dtype or "auto"
    if recipe.new_model is not None:
        tokenizer = AutoTokenizer.from_pretrained(path)
        assert isinstance(recipe.new_model, dict)
        model = new_model(tokenizer, bidirectional=diffusion, seed=training.seed, **recipe.new_model)
    if diffusion:
        if recipe.new_model is not None:
            denoiser = Denoiser(model, tokenizer)
        else:
            denoiser = Denoiser.from_pretrained(
                path, dtype=dtype, trust_remote_code=training.trust_remote_code
            )
        model, tokenizer = denoiser.model, denoiser.tokenizer
    elif recipe.new_model is None:
        model = make_causal(AutoModelForCausalLM.from_pretrained(path, dtype=dtype))
        tokenizer = AutoTokenizer.from_pretrained(path)
    common = {"train_dataset": load_rows(recipe, training, tokenizer), "peft_config": get_peft_config(model_arguments)}
    if diffusion:
        trainer: Any = DiffusionSFTTrainer(denoiser, training, **common)
    else:
        trainer = SFTTrainer(model=model, args=training, processing_class=tokenizer, **common)

    output = Path(training.output_dir)
    checkpoint = training.resume_from_checkpoint
    if checkpoint is None and output.is_dir():
        checkpoint = get_last_checkpoint(str(output))
    with torch.random.fork_rng():
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(training.output_dir)
    trainer.accelerator.print(f"Model saved to {training.output_dir}")


def main() -> None:
    """Parses YAML and command line, then trains."""
    from lockstitch.rl.sft import DiffusionSFTConfig
    from trl import ModelConfig, SFTConfig, TrlParser

    # The solver is trained by TRL's own trainer, which must not be offered options that it would ignore.
    recipe = TrlParser((RecipeArguments,)).parse_args_and_config(return_remaining_strings=True)[0]
    config_class = DiffusionSFTConfig if recipe.objective == "diffusion" else SFTConfig
    parser = TrlParser((RecipeArguments, config_class, ModelConfig))
    recipe, training, model_arguments = parser.parse_args_and_config()
    train(recipe, training, model_arguments)


if __name__ == "__main__":
    main()
