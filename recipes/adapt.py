"""From an autoregressive checkpoint to a diffusion language model.

    accelerate launch -m lockstitch.recipes.adapt --config tiny/adapt.yaml --adapt_preset nbdiff
    accelerate launch -m lockstitch.recipes.adapt --adapt_preset opdlm --model_name_or_path Qwen/Qwen3-0.6B --task gsm8k ...
    accelerate launch -m lockstitch.recipes.adapt --adapt_preset nbdiff --dataset_name my.jsonl --canvas_length 256 ...

The checkpoint is of one of transformers' Llama, Qwen2 or Qwen3 classes; a diffusion model may be adapted further. Settings
come in layers: a preset (`--adapt_preset nbdiff`: a paper's settings, `recipes/presets/adapt`), a config file, the command
line; later ones win. Beside the recipe's own options below there are all of `AdaptationConfig` (the supervised stage's,
with the choices of adaptation) and the model's (TRL's `ModelConfig`).

Data is what the supervised stage takes, or texts (a column `text`, cut into canvases); where a model is trained on its own
rollouts, prompts are enough. A run that was interrupted goes on from its last checkpoint when it is launched again. What it
leaves behind says what it became: it loads, samples and trains as any other diffusion model, without options.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstitch.recipes.sft_data import DataArguments, check_data, load_eval_rows, load_rows, own_rows

from lockstitch.errors import GOES_ON, one_line

if TYPE_CHECKING:
    from lockstitch.recipes.run_directory import Run

MASK = "<|mask|>"  # the token that is added to a tokenizer without one


@dataclass
class RecipeArguments(DataArguments):
    """What to train on, and what to start from."""

    adapt_preset: str | None = field(
        default=None, metadata={"help": "A paper's settings, below the config file: see recipes/presets/adapt."}
    )
    mask_id: int | None = field(
        default=None,
        metadata={
            "help": f"The mask token. By default the tokenizer's; one without has {MASK} added, in a row of the "
            "embeddings that no token has, or else in a new one."
        },
    )
    chat_template: bool | None = field(
        default=None,
        metadata={
            "help": "Whether texts that rollouts answer go through the tokenizer's chat template; by default if it has one."
        },
    )


def parse(argv: Sequence[str]) -> tuple[Any, Any, Any]:
    """Recipe, training and model arguments; `ValueError` for whatever is wrong with them."""
    from lockstitch.recipes.layers import parse_layers
    from lockstitch.rl.adaptation_config import AdaptationConfig
    from lockstitch.rl.lora import DiffusionModelConfig
    from trl import TrlParser

    parser = TrlParser((RecipeArguments, AdaptationConfig, DiffusionModelConfig), allow_abbrev=False)
    recipe, training, model_arguments = parse_layers(parser, argv, "adapt_preset")
    return recipe, training, model_arguments


def check(recipe: RecipeArguments, training: Any, model_arguments: Any) -> None:
    """Raises `ValueError` for settings of the recipe that do not go with those of the training or of the model."""
    if model_arguments.model_name_or_path is None:
        raise ValueError("model_name_or_path=None: say which model to adapt")
    if training.lora_gate and not model_arguments.use_peft:
        raise ValueError("lora_gate=True gates an adapter: use_peft: true")
    if recipe.chat_template is not None and not training.rolls_out:
        raise ValueError(f"chat_template={recipe.chat_template} would be ignored: text={training.text!r}")
    if recipe.chat_template is not None and recipe.generate == "evidence":
        raise ValueError(
            f"chat_template={recipe.chat_template} would be ignored: generate='evidence' asks in its own way"
        )
    check_data(recipe, training)


def is_diffusion(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is a diffusion model's: of a published family, or one that was trained as such here."""
    from lockstitch.sampling.families import FACTS, translation_of

    return bool(raw.get(FACTS)) or translation_of(raw) is not None or raw.get("is_causal") is False


def with_mask_token(model: Any, tokenizer: Any, said: int | None, whole: bool) -> int:
    """The mask token of a model that is to become a diffusion model, which its tokenizer is taught if it has none.

    Args:
        model: may have its embeddings made longer by a row, the mean of the others.
        tokenizer: of the model.
        said: the token, if it was said.
        whole: whether all weights are trained; an adapter cannot bring a row along.

    Raises `ValueError` where an adapter would have to.
    """
    if said is not None:
        return said
    known: int | None = tokenizer.mask_token_id
    if known is not None:
        return known
    rows = model.get_input_embeddings().weight.shape[0]
    tokenizer.add_special_tokens({"mask_token": MASK})
    added: int = tokenizer.mask_token_id
    if added >= rows:
        if not whole:
            raise ValueError(
                f"the tokenizer has no mask token, and each of the model's {rows} rows of embeddings has a token: an "
                "adapter cannot add one; say an unused token with mask_id"
            )
        model.resize_token_embeddings(added + 1)
    return added


def check_teacher(name: str, path: str, raw: Mapping[str, Any], tokenizer: Any, mask_id: int | None) -> None:
    """Raises `ValueError` for a teacher that reads text as other tokens than the model, or has fewer of them.

    The mask token is the model's alone.

    Args:
        name: the option's value.
        path: where the teacher is.
        raw: the model's config.json.
        tokenizer: the model's, before it is taught a mask token.
        mask_id: the model's mask token, if it has one.
    """
    from lockstitch.sampling.loading import load_tokenizer, read_config

    own, its = (config.get("vocab_size") for config in (raw, read_config(path)))
    if own is not None and its is not None and its < own - (mask_id == own - 1):
        raise ValueError(
            f"teacher_name_or_path={name!r} has a vocabulary of {its} tokens, and the model one of {own}: a teacher of the "
            "same tokens is needed"
        )
    known = load_tokenizer(path).get_vocab()
    others = [token for token, i in tokenizer.get_vocab().items() if i != mask_id and known.get(token) != i]
    if others:
        token, i = min(others), tokenizer.get_vocab()[min(others)]
        raise ValueError(
            f"teacher_name_or_path={name!r} has another tokenizer: {len(others)} tokens of the model are none of the "
            f"teacher's, or another ({token!r} is {i} and {known.get(token)}); a teacher of the same tokens is needed"
        )


def load_teacher(path: str, rows: int, mask_id: int, **loading: Any) -> Any:
    """The frozen autoregressive teacher; where the model's mask token has a row that the teacher has not, it is given one.

    Args:
        path: where the teacher is.
        rows: those of the model's embeddings.
        mask_id: the model's mask token.
        loading: of the teacher's weights.
    """
    from lockstitch.sampling.adapters import load_plain
    from lockstitch.sampling.denoiser import make_causal

    teacher: Any = load_plain(path, **loading)
    if teacher.get_input_embeddings().weight.shape[0] == mask_id == rows - 1:
        teacher.resize_token_embeddings(rows)
    return make_causal(teacher).requires_grad_(False)


def prompt_rows(recipe: RecipeArguments, tokenizer: Any, max_length: int | None) -> Any:
    """The prompts that rollouts answer: of one's own data, or of a task, gold answers or not."""
    from datasets import Dataset
    from lockstitch.recipes.rl_data import as_prompts, load_problems
    from lockstitch.rewards.tasks.named import get_task

    if recipe.dataset_name is not None:
        rows = own_rows(recipe, recipe.dataset_train_split)
        if "prompt" not in rows.column_names:
            raise ValueError(
                f"{recipe.dataset_name!r} has no column 'prompt', a text or messages; it has "
                f"{', '.join(rows.column_names)}: name the one that is with columns=prompt:NAME"
            )
        rows, system = rows.to_list(), None
    else:
        task = get_task(recipe.task or recipe.generate or "")
        problems = load_problems(
            task,
            recipe.prompt_form or "plain",
            train_source=recipe.task_source,
            train_path=recipe.task_path,
            num_problems=recipe.num_problems,
            seed=recipe.problem_seed,
        )
        rows, system = problems.train, task.system
    made = as_prompts(rows, tokenizer, max_length, recipe.chat_template, system if tokenizer.chat_template else None)
    return Dataset.from_list([{"prompt": row["prompt"]} for row in made])


def prepare(recipe: RecipeArguments, training: Any, model_arguments: Any) -> "Run | None":
    """The recipe's trainer, ready to run; None where the run is finished already.

    Raises `ValueError` and `OSError` for what is the user's to mend.
    """
    from lockstitch.recipes.read_files import contents_of
    from lockstitch.recipes.run_directory import is_finished, run_of
    from lockstitch.rewards.tasks.named import remembered
    from lockstitch.rl.adaptation import AdaptationTrainer, check_rows
    from lockstitch.rl.lora import loading_of, peft_config_of
    from lockstitch.rl.run_record import RunRecord, changed_settings
    from lockstitch.sampling.adapters import load_plain, to_train_from
    from lockstitch.sampling.denoiser import Denoiser, make_causal
    from lockstitch.sampling.families import FACTS, family_of
    from lockstitch.sampling.loading import is_remote, load_tokenizer, read_config

    from lockstitch import model_name, model_path

    check(recipe, training, model_arguments)
    path = model_arguments.model_name_or_path = model_path(model_arguments.model_name_or_path)
    raw = read_config(path, model_arguments.model_revision)
    if is_remote(raw):
        raise ValueError(f"{path!r} is of type {raw['model_type']!r}, which runs code of its own and is not adapted")
    diffusion = is_diffusion(raw)
    family = training.family(family_of(raw) if diffusion else None)
    if training.rolls_out:
        training.check_rollouts(family, family.block_length)
    if diffusion and training.objective == "distillation" and training.teacher_name_or_path is None:
        raise ValueError(
            "teacher_name_or_path=None: the model is a diffusion model already; say its autoregressive parent"
        )
    settings = changed_settings(recipe, training, model_arguments)
    task = "evidence" if recipe.generate == "evidence" else remembered(recipe.generate or recipe.task)
    facts = model_name(path), None, "adapt", family.name, task, recipe.dataset_name, recipe.adapt_preset, settings
    record = RunRecord(*facts, contents=contents_of(recipe, Path(training.output_dir)))
    if is_finished(Path(training.output_dir), record, training):
        return None
    tokenizer = load_tokenizer(path, model_arguments.model_revision)
    if training.rolls_out and recipe.generate != "evidence":
        train_rows = prompt_rows(recipe, tokenizer, training.max_length)
    else:
        train_rows = load_rows(recipe, training, tokenizer)
    eval_rows = load_eval_rows(recipe, tokenizer)
    template = tokenizer.chat_template is not None or training.chat_template_path is not None
    for name, rows in (("train", train_rows), ("eval", eval_rows)):
        if rows is not None:
            check_rows(rows, name, training, template)
    said = recipe.mask_id if recipe.mask_id is not None else (raw.get(FACTS) or {}).get("mask_token_id")
    teacher, parent = None, training.teacher_name_or_path
    if parent is not None:
        check_teacher(parent, model_path(parent), raw, tokenizer, tokenizer.mask_token_id if said is None else said)
    loading = {**loading_of(model_arguments), "device": training.device}
    model = to_train_from(load_plain(path, **loading), path)
    mask_id = with_mask_token(model, tokenizer, said, not model_arguments.use_peft)
    if family.layout != "full":  # plain `generate` of what is saved is then what its causal half says
        make_causal(model)
    if parent is not None:
        rows_there = model.get_input_embeddings().weight.shape[0]
        its = {"dtype": loading["dtype"], "device": training.device}
        teacher = load_teacher(model_path(parent), rows_there, mask_id, **its)
    denoiser = Denoiser(model, tokenizer, family, mask_id)
    trainer = AdaptationTrainer(
        denoiser,
        training,
        teacher,
        peft_config_of(model_arguments, denoiser, gated=training.lora_gate),
        train_dataset=train_rows,
        eval_dataset=eval_rows,
    )
    return run_of(trainer, record, path, model_arguments.model_revision)


def run(prepared: "Run | None") -> None:
    """Trains what there is to train."""
    if prepared is None:
        return
    prepared()
    prepared.trainer.accelerator.print(f"Model saved to {prepared.trainer.args.output_dir}")


def train(recipe: RecipeArguments, training: Any, model_arguments: Any) -> None:
    """Runs the recipe and leaves everything in `training.output_dir`."""
    run(prepare(recipe, training, model_arguments))


def main() -> None:
    """Reads the layers of settings, then trains."""
    with one_line("adapt"):
        # Seconds of imports, in which Ctrl-C may come.
        from lockstitch.recipes.run_directory import MISTAKES, leaving_nothing

        recipe, training, model_arguments = parse(sys.argv[1:])
        with leaving_nothing(Path(training.output_dir)):
            prepared = prepare(recipe, training, model_arguments)
    with one_line("adapt", f"interrupted; {GOES_ON}", MISTAKES):
        run(prepared)


if __name__ == "__main__":
    main()
