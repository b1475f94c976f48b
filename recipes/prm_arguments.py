"""What `lockstitch prm` can be told beside the trainer's and the model's options, and what of it goes together.

Labelled steps come from one of three places, and most options belong to one: the completions of a task's problems
(`label_model`), finished traces of a task (`traces`), or rows that are labelled already (`dataset_name`). What is not of the
place that is named would be ignored, and is refused.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any

FEATURES = "features"  # in the place of a model: a regression on what can be counted
DTYPES = ("float32", "float16", "bfloat16")
COMPLETION, TRACES, ROWS = (
    "labelling by completion",
    "traces, which are labelled by their answers",
    "rows of dataset_name",
)
# The option that names each place, and what else belongs to it alone.
PLACES = {
    COMPLETION: (
        "label_model", "completion_model", "input", "eval_input", "num_problems", "num_eval_problems", "num_fit_problems",
        "problem_seed", "num_trajectories", "num_completions", "label", "canvas_length", "block_length", "steps",
        "completion_steps", "temperature", "sample_batch_size", "chunk", "labels_only", "scorers",
    ),
    TRACES: ("traces", "eval_traces"),
    ROWS: ("dataset_name", "dataset_config", "columns", "dataset_train_split", "dataset_test_split"),
}  # fmt: skip
# What the labels of each say of a step.
LABELS_SAY = {
    COMPLETION: "the labels: completions that end right",
    TRACES: "the labels: whether the answer of the step's trace is right",
    ROWS: "the labels of the data set",
}
# What is of a language model, and of no regression.
OF_A_MODEL = ("chat_template", "system_prompt", "family", "attention", "step_separator", "save_dtype")
# What of the trainer's settings says where and how a regression runs and tells, too.
OF_ANY_RUN = ("output_dir", "use_cpu", "report_to", "log_level", "disable_tqdm")


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
            raise ValueError(
                f"task={self.task!r}, dataset_name={self.dataset_name!r}: say where labelled steps come from, once: "
                "task=NAME, to label, or dataset_name=NAME"
            )
        place = self.place
        defaults = {one.name: one.default for one in fields(self)}
        for other, names in PLACES.items():
            for name in names:
                if other != place and getattr(self, name) != defaults[name]:
                    raise ValueError(f"{name}={getattr(self, name)!r} is of {other}; it would be ignored by {place}")
        if place == COMPLETION:
            self._check_completion()
        if self.save_dtype is not None and self.save_dtype not in DTYPES:
            raise ValueError(f"save_dtype={self.save_dtype!r} is not one of {', '.join(DTYPES)}")

    @property
    def place(self) -> str:
        """Where the labelled steps come from, a key of `PLACES`."""
        return ROWS if self.task is None else COMPLETION if self.traces is None else TRACES

    def _check_completion(self) -> None:
        if self.label_model is None:
            raise ValueError("label_model=None: say which diffusion model writes and completes the trajectories")
        if self.eval_input is not None and self.input is None:
            raise ValueError(
                f"eval_input={self.eval_input!r} goes with input, which is missing: made-up problems have "
                "held-out ones"
            )
        if self.input is not None and self.eval_input is None and self.num_eval_problems is not None:
            raise ValueError(
                f"num_eval_problems={self.num_eval_problems} would be ignored: input={self.input!r} holds problems to "
                "train on, and eval_input, with those to judge on, is missing"
            )
        for name, least in (
            ("num_problems", 1),
            ("num_eval_problems", 0),
            ("num_fit_problems", 0),
            ("canvas_length", 1),
            ("block_length", 1),
            ("steps", 1),
            ("completion_steps", 1),
            ("sample_batch_size", 1),
            ("chunk", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature={self.temperature} must be a number, at least 0")
        if self.num_completions > 1 and self.temperature == 0:
            raise ValueError(
                f"temperature={self.temperature}: all num_completions={self.num_completions} would be the same"
            )
        from lockstitch.recipes.step_labels import Labelling
        from lockstitch.stitching.score import scorer_parts

        Labelling(self.num_trajectories, self.num_completions, self.label)
        twice = sorted({scorer for scorer in self.scorers or () if (self.scorers or []).count(scorer) > 1})
        if twice:
            raise ValueError(f"scorers={self.scorers}: each once, and {', '.join(map(repr, twice))} stands twice")
        sums = [scorer for scorer in self.scorers or () if len(scorer_parts(scorer)) > 1]
        if bool(sums) != bool(self.num_fit_problems):
            raise ValueError(
                f"num_fit_problems={self.num_fit_problems} and sums in scorers ({', '.join(sums) or 'none'}) "
                "belong together: weights are fitted on these"
            )
        if len(sums) > 1:
            raise ValueError(
                f"scorers={self.scorers}: one sum at most, whose weights are saved; not {', '.join(sums)}"
            )
        nothing = self.num_eval_problems == 0 or (self.input is not None and self.eval_input is None)
        if self.scorers and nothing:
            raise ValueError(
                f"scorers={self.scorers} would be ignored: there are no problems to judge on "
                f"(num_eval_problems={self.num_eval_problems}, eval_input={self.eval_input!r})"
            )


def check_features(recipe: RecipeArguments, training: Any, model_arguments: Any) -> None:
    """Raises `ValueError` for settings of a language model where a regression on features is fitted in its place."""
    from lockstitch.rl.run_record import changed_settings

    if recipe.traces is None:
        raise ValueError(
            f"model_name_or_path={FEATURES!r} reads traces that are labelled by their answers: say --traces"
        )
    usual = changed_settings(type(training)(use_cpu=training.use_cpu), type(model_arguments)())
    defaults = usual | {one.name: one.default for one in fields(recipe)}
    said = {name: getattr(recipe, name) for name in OF_A_MODEL} | changed_settings(training, model_arguments)
    for name, value in said.items():
        if value != defaults.get(name) and name not in (*OF_ANY_RUN, "model_name_or_path"):
            raise ValueError(f"{name}={value!r} would be ignored: model_name_or_path={FEATURES!r} trains no model")


def check_evaluation(recipe: RecipeArguments, training: Any) -> None:
    """Raises `ValueError` where the trainer is to evaluate and there are no rows to judge on."""
    if recipe.task is None:
        rows, where = recipe.dataset_test_split is not None, "dataset_test_split"
    elif recipe.traces is not None:
        rows, where = recipe.eval_traces is not None, "eval_traces"
    elif recipe.input is not None:
        rows, where = recipe.eval_input is not None and recipe.num_eval_problems != 0, "eval_input"
    else:
        rows, where = recipe.num_eval_problems != 0, "num_eval_problems"
    strategy = str(getattr(training.eval_strategy, "value", training.eval_strategy))
    if strategy != "no" and not rows:
        raise ValueError(f"eval_strategy={strategy!r} wants rows to judge on: {where}")
    if training.eval_on_start and not rows:
        raise ValueError(f"eval_on_start=True wants rows to judge on: {where}")
