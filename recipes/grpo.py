"""Reinforcement learning of a diffusion language model on a task with verifiable rewards.

    accelerate launch -m lockstitch.recipes.grpo --config recipes/configs/tiny/sudoku.yaml
    accelerate launch -m lockstitch.recipes.grpo --rl_preset espo --task countdown --model_name_or_path MODEL ...
    accelerate launch -m lockstitch.recipes.grpo --dataset_name my.jsonl --reward_funcs my_reward.py:score ...

Settings come in layers: a preset (`--rl_preset d1`: a paper's settings, `recipes/presets`), a config file, the command line;
later ones win, and a key that nobody knows is refused. Beside the recipe's own options below there are all of
`DiffusionGRPOConfig` (TRL's `GRPOConfig`), the model's (TRL's `ModelConfig`; `embedded:NAME` is a model that comes with the
package) and the limits of `HealthConfig`.

A run that was interrupted goes on from its last checkpoint when it is launched again. It leaves behind the adapter or model,
`run.json` (what it was), `report.html` (how it went) and `trainer_state.json` (its log).
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstitch.recipes.stitch_teacher import StitchTeacherArguments, teaching_of

from lockstitch.errors import GOES_ON, OthersCodeError, one_line, others_code

if TYPE_CHECKING:
    from lockstitch.recipes.run_directory import Run
    from lockstitch.rewards.tasks.task import Task


@dataclass
class RecipeArguments(StitchTeacherArguments):
    """What to train on, what pays, what is measured on the way, and whether stitched completions teach."""

    task: str | None = field(
        default=None,
        metadata={
            "help": "The task: a name that `lockstitch tasks` lists, reasoning_gym:NAME, a YAML file, "
            "file.py:attribute or module:attribute."
        },
    )
    rl_preset: str | None = field(
        default=None, metadata={"help": "A paper's settings, below the config file: see recipes/presets."}
    )
    prompt_form: str | None = field(
        default=None,
        metadata={
            "help": "How the model is asked: tags, boxed, fenced or plain; the first of these that the task has by "
            "default."
        },
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Rewards: names of plug-ins (`lockstitch rewards`), package.module:function or file.py:function. "
            "By default the task's own with its weights; otherwise see reward_weights."
        },
    )
    train_source: str | None = field(
        default=None, metadata={"help": "Which of the task's sources to train on; `train` by default."}
    )
    train_path: str | None = field(default=None, metadata={"help": "A file or folder to read them from."})
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "One's own data: a hub name, a directory, or a file. With a task, rows that it reads; without "
            "one, a column `prompt` (texts or messages), and all others to the rewards."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Its configuration on the hub."})
    dataset_train_split: str = field(default="train", metadata={"help": "Its split."})
    dataset_test_split: str | None = field(
        default=None,
        metadata={"help": "Without a task: the split to measure on, in the place of the last training rows."},
    )
    columns: str | None = field(
        default=None, metadata={"help": "Its columns under other names: prompt:question,answer:solution."}
    )
    chat_template: bool | None = field(
        default=None,
        metadata={"help": "Whether prompts go through the tokenizer's chat template; by default if it has one."},
    )
    system_prompt: str | None = field(default=None, metadata={"help": "What every conversation begins with."})
    held_out_threshold: float = field(
        default=1.0, metadata={"help": "Reward from which a held-out completion counts as right."}
    )
    num_problems: int | None = field(
        default=None,
        metadata={"help": "Train on the first so many rows; where problems are made up, on so many new ones."},
    )
    problem_seed: int = field(default=0, metadata={"help": "Seed of problems that are made up."})
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Leave prompts of more tokens out, template included."}
    )
    family: str | None = field(
        default=None, metadata={"help": "How the model attends and predicts, if its config does not say."}
    )
    mask_id: int | None = field(default=None, metadata={"help": "Mask token, if the tokenizer does not say."})
    held_out_problems: int = field(
        default=0,
        metadata={
            "help": "Measure accuracy on so many problems: made up on the other side of the split, or else the last "
            "training rows, which are then not trained on. 0 measures nothing."
        },
    )
    held_out_source: str | None = field(default=None, metadata={"help": "Measure on this source instead, `test` say."})
    held_out_path: str | None = field(default=None, metadata={"help": "A file or folder to read it from."})
    held_out_tokens_per_step: list[int] = field(
        default_factory=lambda: [1],
        metadata={"help": "Tokens denoised a step in these measurements; one or more numbers."},
    )
    held_out_every: int = field(default=100, metadata={"help": "Steps between measurements."})
    html: bool = field(
        default=True,
        metadata={"help": "Write report.html into the output directory at every checkpoint and at the end."},
    )

    def __post_init__(self) -> None:
        self.check_teacher(self.task)
        if self.task is None and self.dataset_name is None:
            raise ValueError(
                "task=None, dataset_name=None: say what to train on, --task sudoku or --dataset_name my.jsonl"
            )
        if self.task is None and self.reward_funcs is None:
            raise ValueError(
                f"reward_funcs=None: say what pays on dataset_name={self.dataset_name!r}, my_reward.py:score "
                "for example"
            )
        if self.task is None:
            for name in ("train_source", "train_path", "held_out_source", "held_out_path"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}={getattr(self, name)!r} is a task's, and task=None")
            if self.prompt_form is not None:
                raise ValueError(
                    f"prompt_form={self.prompt_form!r} would be ignored: own prompts are asked as they are"
                )
        elif self.dataset_test_split is not None:
            raise ValueError(
                f"dataset_test_split={self.dataset_test_split!r} would be ignored with a task: held_out_source"
            )
        if self.dataset_name is None:
            for name, usual in (("dataset_config", None), ("columns", None), ("dataset_train_split", "train")):
                if getattr(self, name) != usual:
                    raise ValueError(f"{name}={getattr(self, name)!r} is of dataset_name, which is missing")
        elif self.problem_seed:
            raise ValueError(f"problem_seed={self.problem_seed} would be ignored: dataset_name has rows of its own")
        for name, least in (
            ("num_problems", 1),
            ("max_prompt_length", 1),
            ("held_out_every", 1),
            ("held_out_problems", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}")


def parse(argv: Sequence[str]) -> tuple[Any, Any, Any, Any]:
    """Recipe, health, training and model arguments; `ValueError` for whatever is wrong with them."""
    from lockstitch.recipes.layers import parse_layers
    from lockstitch.rl.grpo_config import DiffusionGRPOConfig
    from lockstitch.rl.health_rules import HealthConfig
    from lockstitch.rl.lora import DiffusionModelConfig
    from trl import TrlParser

    from lockstitch import model_path

    parser = TrlParser((RecipeArguments, HealthConfig, DiffusionGRPOConfig, DiffusionModelConfig), allow_abbrev=False)
    recipe, health, training, model_arguments = parse_layers(parser, argv)
    name = model_arguments.model_name_or_path
    if name is None:
        raise ValueError("model_name_or_path=None: say which model to train")
    model_arguments.model_name_or_path = model_path(name)
    return recipe, health, training, model_arguments


def rewards_of(recipe: RecipeArguments, training: Any, task: "Task") -> list[Callable[..., Any]]:
    """The reward functions; sets their weights in `training` where they are the task's own."""
    from lockstitch.rewards.plugins import load_reward
    from lockstitch.rewards.tasks.task import load, name_of

    if recipe.reward_funcs is not None:
        return [_named(name, load_reward(name)) for name in recipe.reward_funcs]
    weighted = task.rewards_for(recipe.prompt_form or task.forms[0])
    if training.reward_weights is None:
        training.reward_weights = [weight for _, weight in weighted]
    elif len(training.reward_weights) != len(weighted):
        raise ValueError(
            f"reward_weights={training.reward_weights}: task {task.name!r} has the rewards "
            f"{', '.join(name_of(reward) for reward, _ in weighted)}"
        )
    return [_named(name_of(reward), load(reward)) for reward, _ in weighted]


def _named(name: str, reward: Callable[..., Any]) -> Callable[..., Any]:
    """A reward whose errors say which it is; of ours, those that columns make which are missing or of other types."""
    from lockstitch.rewards.contract import checked_values
    from lockstitch.rewards.tasks.task import name_of
    from trl.trainer.utils import is_async_callable

    mistakes = (ValueError, TypeError) if reward.__module__.startswith("lockstitch.") else (Exception, SystemExit)

    @wraps(reward)
    def named(*args: Any, **columns: Any) -> Any:
        with others_code(f"reward {name!r}", mistakes):
            values = reward(*args, **columns)
        return checked_values(name, values, len(columns["completions"]))

    @wraps(reward)
    async def named_later(*args: Any, **columns: Any) -> Any:
        with others_code(f"reward {name!r}", mistakes):
            values = await reward(*args, **columns)
        return checked_values(name, values, len(columns["completions"]))

    made = named_later if is_async_callable(reward) else named
    made.__name__ = name_of(reward)  # by which metrics are called; an object has none to copy
    return made


def _what_pays(recipe: RecipeArguments, training: Any) -> tuple[Any, list[Callable[..., Any]], Callable[..., Any]]:
    """The problems, the rewards, and the one of these that judges what is held out."""
    from lockstitch.recipes.rl_data import load_problems, own_problems
    from lockstitch.rewards.plugins import load_reward
    from lockstitch.rewards.tasks.data import read_columns
    from lockstitch.rewards.tasks.named import get_task
    from lockstitch.rewards.tasks.task import load, name_of

    data: dict[str, Any] = {
        "dataset_config": recipe.dataset_config,
        "dataset_train_split": recipe.dataset_train_split,
        "columns": read_columns(recipe.columns),
    }
    if recipe.task is None:
        assert recipe.dataset_name is not None
        assert recipe.reward_funcs is not None
        rewards = [_named(name, load_reward(name)) for name in recipe.reward_funcs]
        problems = own_problems(
            recipe.dataset_name,
            dataset_test_split=recipe.dataset_test_split,
            num_problems=recipe.num_problems,
            held_out=recipe.held_out_problems,
            **data,
        )
        return problems, rewards, rewards[0]
    task = get_task(recipe.task)
    if recipe.system_prompt is None:
        recipe.system_prompt = task.system
    problems = load_problems(
        task,
        recipe.prompt_form or task.forms[0],
        train_source=recipe.train_source,
        train_path=recipe.train_path,
        dataset_name=recipe.dataset_name,
        num_problems=recipe.num_problems,
        seed=recipe.problem_seed,
        held_out=recipe.held_out_problems,
        held_out_source=recipe.held_out_source,
        held_out_path=recipe.held_out_path,
        **data,
    )
    return problems, rewards_of(recipe, training, task), _named(name_of(task.rewards[0][0]), load(task.rewards[0][0]))


def prepare(recipe: RecipeArguments, health: Any, training: Any, model_arguments: Any) -> "Run | None":
    """The recipe's trainer, ready to run; None where the run is finished already.

    Raises `ValueError` and `OSError` for what is the user's to mend.
    """
    from datasets import Dataset
    from lockstitch.recipes.held_out import HeldOut, held_out_samplers
    from lockstitch.recipes.read_files import contents_of
    from lockstitch.recipes.reporting import ReportCallback
    from lockstitch.recipes.rl_data import as_prompts, check_room
    from lockstitch.recipes.run_directory import is_finished, run_of
    from lockstitch.rewards.plugins import remembered_reward
    from lockstitch.rewards.tasks.named import get_task, remembered
    from lockstitch.rl.grpo import DiffusionGRPOTrainer
    from lockstitch.rl.health import HealthCallback
    from lockstitch.rl.lora import loading_of, peft_config_of
    from lockstitch.rl.run_record import RunRecord, changed_settings
    from lockstitch.sampling.adapters import to_train_from
    from lockstitch.sampling.denoiser import Denoiser, check_loadable
    from lockstitch.sampling.layouts import check_layout, in_blocks_of
    from lockstitch.sampling.loading import layout_of, load_tokenizer

    from lockstitch import model_name

    if training.eval_on_start or training.eval_strategy != "no":
        raise ValueError(
            f"eval_strategy={str(training.eval_strategy)!r}, eval_on_start={training.eval_on_start}: there are "
            "no rows to evaluate; held_out_problems and held_out_every measure"
        )
    path = model_arguments.model_name_or_path
    family, raw = layout_of(path, recipe.family, model_arguments.model_revision)
    check_loadable(path, family, raw, training.trust_remote_code)
    settings = changed_settings(recipe, health, training, model_arguments)
    if recipe.reward_funcs is not None:
        settings["reward_funcs"] = [remembered_reward(name) for name in recipe.reward_funcs]
    task = remembered(recipe.task)
    name = model_name(path)
    contents = contents_of(recipe, Path(training.output_dir))
    record = RunRecord(
        name, None, "grpo", family.name, task, recipe.dataset_name, recipe.rl_preset, settings, contents=contents
    )
    if is_finished(Path(training.output_dir), record, training):
        return None
    problems, reward_funcs, judge = _what_pays(recipe, training)
    teaching = teaching_of(recipe, None if recipe.task is None else get_task(recipe.task))
    sampler = in_blocks_of(training.sampler_config(), family)
    check_layout(sampler, family)
    samplers = held_out_samplers(
        sampler.canvas_length, sampler.block_length, recipe.held_out_tokens_per_step, sampler.batch_size
    )
    template = training.chat_template_kwargs or {}
    tokenizer = load_tokenizer(path, model_arguments.model_revision, training.trust_remote_code)
    asked = (tokenizer, recipe.max_prompt_length, recipe.chat_template, recipe.system_prompt)
    rows, held_out = (as_prompts(some, *asked, **template) for some in (problems.train, problems.held_out))
    prompts = training.generation_batch_size // training.num_generations
    if len(rows) < prompts:  # TRL would drop them, and train nothing
        raise ValueError(
            f"{len(rows)} prompts to train on: a generation of generation_batch_size={training.generation_batch_size} "
            f"completions, num_generations={training.num_generations} of each prompt, takes {prompts}"
        )
    denoiser = Denoiser.from_pretrained(
        path,
        family=recipe.family,
        mask_id=recipe.mask_id,
        device=training.device,
        trust_remote_code=training.trust_remote_code,
        **loading_of(model_arguments),
    )
    room = None if denoiser.longest is None else denoiser.longest - sampler.canvas_length
    if recipe.max_prompt_length is None or room is None or recipe.max_prompt_length > room:
        for some in (rows, held_out):
            check_room(some, tokenizer, room, **template)
    denoiser.model = to_train_from(denoiser.model, path)
    callbacks: list[Any] = [HealthCallback(health)]
    measure = None
    if held_out:
        measure = HeldOut(
            tokenizer, held_out, judge, samplers, recipe.held_out_every, template, recipe.held_out_threshold
        )
        callbacks.append(measure)
    if recipe.html:
        callbacks.append(ReportCallback())
    trainer = DiffusionGRPOTrainer(
        denoiser,
        reward_funcs,
        training,
        train_dataset=Dataset.from_list(rows),
        callbacks=callbacks,
        peft_config=peft_config_of(model_arguments, denoiser, ratios=training.policy_loss != "weighted"),
        teaching=teaching,
    )
    if measure is not None:
        measure.trainer = trainer
    return run_of(trainer, record, path, model_arguments.model_revision)


def run(prepared: "Run | None") -> None:
    """Trains what there is to train."""
    from lockstitch.rl.health import HealthCallback

    if prepared is None:
        return
    prepared()
    trainer = prepared.trainer
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, HealthCallback) and callback.reason is not None:
            trainer.accelerator.print(f"Stopped early: {callback.reason}")
    trainer.accelerator.print(f"Saved to {trainer.args.output_dir}")


def train(recipe: RecipeArguments, health: Any, training: Any, model_arguments: Any) -> None:
    """Runs the recipe and leaves everything in `training.output_dir`."""
    run(prepare(recipe, health, training, model_arguments))


def main() -> None:
    """Reads the layers of settings, then trains."""
    with one_line("grpo"):
        # Seconds of imports, in which Ctrl-C may come.
        from lockstitch.recipes.run_directory import MISTAKES, leaving_nothing

        recipe, health, training, model_arguments = parse(sys.argv[1:])
        with leaving_nothing(Path(training.output_dir)):
            prepared = prepare(recipe, health, training, model_arguments)
    with one_line("grpo", f"interrupted; {GOES_ON}", (*MISTAKES, OthersCodeError)):
        run(prepared)


if __name__ == "__main__":
    main()
