"""What `lockstitch stitch` can be told, checked before anything is loaded. Loading by it: `loading`."""

import math
from dataclasses import dataclass, field
from typing import Any

from lockstitch.errors import without_passwords

EMBEDDED = "embedded"
NONE = "none"
PATH = "path"
NUM_TRAJECTORIES = 8
POLICIES = ("quota", "random", "threshold")  # those that need no option of their own
SERVER = ("solver_timeout", "solver_attempts", "solver_concurrency")  # of a server's solver alone


@dataclass
class StitchConfig:
    """Everything that `lockstitch stitch` can be told."""

    task: str = field(
        metadata={"help": "A name that `lockstitch tasks` lists, a YAML file, file.py:attribute or module:attribute."}
    )
    input: str | None = field(
        default=None,
        metadata={
            "help": "Problems: JSON Lines with 'question' and, where known, 'answer'; or a "
            "benchmark file in its own notation."
        },
    )
    question: str | None = field(default=None, metadata={"help": "One problem, shown in the terminal."})
    generate: int | None = field(default=None, metadata={"help": "This many generated held-out problems."})
    trajectories: str | None = field(
        default=None,
        metadata={
            "help": "Trajectories sampled elsewhere: rows with a question and 'completions' or "
            "'completion', or as lockstitch sample, TRL and lm-eval write them."
        },
    )
    source: str | None = field(
        default=None,
        metadata={"help": "Problems of the task's own rows: the name of one of its sources, such as test."},
    )
    column: str | None = field(
        default=None,
        metadata={"help": "The column of the completions of --trajectories, if it has no name that is known."},
    )
    limit: int | None = field(default=None, metadata={"help": "Only the first so many problems."})
    output: str | None = field(
        default=None,
        metadata={
            "help": "Directory for results.jsonl, summary.json and report.html. Needed unless one question is asked."
        },
    )
    model: str | None = field(
        default=None,
        metadata={
            "help": "Diffusion model: a directory or hub name, or embedded:NAME. Default: the embedded one of the task."
        },
    )
    family: str | None = field(
        default=None, metadata={"help": "How the model attends and predicts, if its config does not say."}
    )
    mask_id: int | None = field(
        default=None, metadata={"help": "The mask token, if neither tokenizer nor config says it."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code of a checkpoint of unknown type."})
    compile: bool = field(
        default=False,
        metadata={
            "help": "Whether torch.compile makes code of the diffusion model's layers, at the first pass. Without a cache."
        },
    )
    device: str | None = field(
        default=None, metadata={"help": "Of the models in this process, vLLM's apart (default: the accelerator)."}
    )
    num_trajectories: int | None = field(default=None, metadata={"help": "N, trajectories per problem (default 8)."})
    canvas_length: int | None = field(default=None, metadata={"help": "Tokens of the canvas (default: the task's)."})
    chat_template: bool | None = field(
        default=None,
        metadata={"help": "Whether questions go through the tokenizer's chat template; by default if it has one."},
    )
    system_prompt: str | None = field(default=None, metadata={"help": "What a conversation begins with."})
    preset: str | None = field(
        default=None,
        metadata={
            "help": "Named settings of the sampler, such as llada, dream, sdar; what is said beside it "
            "goes before what it says."
        },
    )
    block_length: int | None = field(
        default=None, metadata={"help": "Positions denoised together (default: the model's own block, else all)."}
    )
    policy: str | None = field(
        default=None, metadata={"help": "quota (default), random or threshold; a preset may have others."}
    )
    steps: int | None = field(
        default=None,
        metadata={"help": "Denoising steps under quota (default: four tokens a step, or as the preset has it)."},
    )
    threshold: float | None = field(default=None, metadata={"help": "Confidence to commit at, under threshold."})
    temperature: float | None = field(
        default=None,
        metadata={"help": "Of the trajectories (default: the preset's, or 0.7)."},
    )
    scorer: str = field(
        default="calculator",
        metadata={
            "help": "calculator, consensus, confidence, bmc, bound, likelihood:MODEL, prm:MODEL (prm:embedded:sudoku), "
            "verifier:DIR or module:function; a+b combines."
        },
    )
    scorer_weights: str | None = field(
        default=None, metadata={"help": "Fitted weights of this scorer (`lockstitch prm` writes scorer_weights.json)."}
    )
    evidence_weights: str | None = field(
        default=None,
        metadata={
            "help": "Fitted weights of the vote by evidence of `stitched` (`lockstitch prm --traces` writes "
            "evidence_weights.json)."
        },
    )
    checker: str = field(
        default="exact",
        metadata={"help": "exact: the task's checker has a say in every chain; none: the scorer alone."},
    )
    rescore: bool = field(
        default=False,
        metadata={"help": "Have the scorer read the stitched chain again, and go by what it says there."},
    )
    methods: list[str] | None = field(
        default=None,
        metadata={
            "help": "The methods that run; by default all but value_guided_reveal, vgb_momentum, guided_remask, "
            "plan_then_diffuse and stitched_wide, which cost more or need more."
        },
    )
    planner: str | None = field(
        default=None,
        metadata={
            "help": "Writes the plan of plan_then_diffuse: a model directory or hub name, or embedded (default for "
            "the embedded tasks)."
        },
    )
    rule: str | None = field(
        default=None,
        metadata={
            "help": "Stitching rule: path, paper or public (default: path, or paper where the task has "
            "no checker of steps)."
        },
    )
    delta: float = field(default=0.9, metadata={"help": "Steps that score at least this are kept."})
    rounds: bool | None = field(
        default=None,
        metadata={
            "help": "Denoise again around the evidence (default: yes, with the rule path and a diffusion model)."
        },
    )
    round_width: int | None = field(
        default=None,
        metadata={
            "help": "Canvases denoised side by side in a round (default 1: each learns from all before "
            "it; more wait less for one another); of stitched_wide 4 by default, or half of N."
        },
    )
    round_temperature: float | None = field(
        default=None, metadata={"help": "Of the canvases that are denoised again (default: as temperature)."}
    )
    solver: str | None = field(
        default=None,
        metadata={
            "help": "Writes the answer: a model directory or hub name, draft:MODEL, vllm:MODEL, openai:MODEL@URL, "
            "none, or embedded (default for the embedded tasks)."
        },
    )
    solver_timeout: float | None = field(
        default=None, metadata={"help": "Seconds that a request to an openai: solver may take (default 120)."}
    )
    solver_attempts: int | None = field(
        default=None, metadata={"help": "How often such a request is tried, with growing pauses (default 5)."}
    )
    solver_concurrency: int | None = field(default=None, metadata={"help": "Such requests at a time (default 8)."})
    seed: int = field(default=0, metadata={"help": "Seed of all noise and of generated problems."})
    batch_size: int = field(default=256, metadata={"help": "Most rows in one forward pass."})
    chunk: int = field(
        default=25, metadata={"help": "Problems worked on together; results are saved after each chunk."}
    )
    color: str = field(default="auto", metadata={"help": "auto, always or never."})

    def __post_init__(self) -> None:
        from lockstitch.stitching.score import TRACED, scorer_parts
        from lockstitch.stitching.stitch import RULES

        from lockstitch.terminal import WHEN

        sources = ("input", "question", "generate", "trajectories", "source")
        given = [name for name in sources if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"say where the problems come from, once: --{', --'.join(sources)} (given: {given or 'none'})"
            )
        if self.rule is not None and self.rule not in RULES:
            raise ValueError(f"rule={self.rule!r} is not one of {', '.join(RULES)}")
        if not 0 <= self.delta < math.inf:
            raise ValueError(
                f"delta={self.delta} must be a finite number of at least 0 (above 1 keeps the anchor alone)"
            )
        if self.round_temperature is not None and not 0 <= self.round_temperature < math.inf:
            raise ValueError(f"round_temperature={self.round_temperature} must be a finite number of at least 0")
        self._check_server()
        self._check_methods()
        for name in (
            "generate",
            "limit",
            "num_trajectories",
            "round_width",
            "batch_size",
            "chunk",
            "solver_attempts",
            "solver_concurrency",
        ):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
        if self.policy not in (None, *POLICIES):
            raise ValueError(
                f"policy={self.policy!r} is not one of {', '.join(POLICIES)}; --preset names settings with others"
            )
        if self.checker not in ("exact", "none"):
            raise ValueError(f"checker={self.checker!r} is not one of exact, none")
        if self.rescore and self.rule not in (None, PATH):
            raise ValueError(f"rescore=True would be ignored: rule={self.rule!r} puts no chain together; path does")
        self._check_comparing()
        traced = sorted(set(scorer_parts(self.scorer)) & TRACED)
        if self.rescore and traced:
            raise ValueError(
                f"rescore=True: scorer={traced[0]!r} reads a sampler's trace, which a stitched chain has not"
            )
        if self.color not in WHEN:
            raise ValueError(f"color={self.color!r} is not one of {', '.join(WHEN)}")
        if self.output is None and self.question is None:
            raise ValueError("--output DIR is needed (only --question can do without)")
        if self.column is not None and self.trajectories is None:
            raise ValueError(f"column={self.column!r} would be ignored without --trajectories")
        if self.trajectories is not None:
            sampling = (
                "model",
                "family",
                "mask_id",
                "device",
                "chat_template",
                "system_prompt",
                "num_trajectories",
                "canvas_length",
                "preset",
                "block_length",
                "policy",
                "steps",
                "threshold",
                "temperature",
                "rounds",
                "round_width",
                "round_temperature",
            )
            ignored = [name for name in sampling if getattr(self, name) is not None]
            if self.compile:
                ignored.append("compile")
            if self.trust_remote_code and "prm:" not in self.scorer:
                ignored.append("trust_remote_code")
            if ignored:
                raise ValueError(f"--trajectories come as they are: {', '.join(ignored)} would be ignored")
            if traced:
                raise ValueError(f"scorer={traced[0]!r} reads the sampler's trace, which --trajectories do not have")
            self.rounds = False
        self.check_rounds()
        if self.question is not None and self.limit is not None:
            raise ValueError(f"limit={self.limit} would be ignored with --question")

    def _check_methods(self) -> None:
        from lockstitch.stitching.method_names import METHODS, WALKS
        from lockstitch.stitching.score import OF_DENOISER, TRACED, scorer_parts

        asked = self.methods or []
        unknown = [name for name in asked if name not in METHODS]
        if unknown or self.methods == []:
            raise ValueError(f"methods={self.methods} must be of {', '.join(METHODS)}")
        if len(set(asked)) < len(asked):
            raise ValueError(f"methods={asked}: each once")
        if self.planner is not None and "plan_then_diffuse" not in asked:
            raise ValueError(f"planner={self.planner!r} would be ignored without --methods plan_then_diffuse")
        for name, use in (
            ("rescore", ("stitched", "stitched_wide")),
            ("round_width", ("stitched", "stitched_wide")),
            ("round_temperature", ("best_of_n_refine", "remask_loop", "vgb_momentum", "guided_remask", "stitched",
                                   "stitched_wide")),
            ("evidence_weights", ("stitched",)),
        ):  # fmt: skip
            if asked and getattr(self, name) not in (None, False) and not set(use) & set(asked):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} would be ignored: methods={asked}; it is of {', '.join(use)}"
                )
        of_rounds = [name for name in ("guided_remask", "stitched_wide") if name in asked]
        if of_rounds and (self.rounds is False or self.rule not in (None, PATH)):
            raise ValueError(f"methods: {of_rounds[0]} denoises in rounds by the rule path")
        parts = set(scorer_parts(self.scorer))
        reading = sorted(parts & TRACED)
        for name in ("guided_remask", "plan_then_diffuse"):
            if name in asked and reading:
                raise ValueError(
                    f"methods: {name} has scorer={reading[0]!r} read text that has no sampler's trace, which it cannot"
                )
        for name in WALKS:
            if name in asked and parts & OF_DENOISER:
                raise ValueError(
                    f"methods: {name} scores every canvas that a token leads to, and scorer={self.scorer!r} asks the "
                    "diffusion model again for each: calculator, confidence and prm:MODEL go with it"
                )

    def check_rounds(self) -> None:
        """Raises `ValueError` for settings of rounds that do not go with the rule, or with one another."""
        if self.rounds and self.rule not in (None, PATH):
            raise ValueError(f"rounds stitch by the rule path; rule={self.rule!r} takes --rounds false")
        if self.round_width is not None and (self.rounds is False or self.rule not in (None, PATH)):
            raise ValueError(f"round_width={self.round_width} would be ignored without rounds")

    def settle(self, task: Any) -> None:
        """Takes the rule and the rounds that fit the task where none was said; `ValueError` for those that do not fit."""
        if task.checker is None and (self.rule == PATH or self.rounds):
            what = "rule='path'" if self.rule == PATH else "rounds=True"
            raise ValueError(
                f"{what} follows what the checker of steps knows, which task {task.name!r} has not: --rule "
                "paper or public, without rounds"
            )
        if self.scorer == "calculator":
            from lockstitch.stitching.score import Calculator

            if task.checker is None and self.trajectories is not None:  # these have no trace for the next best to read
                raise ValueError(
                    f"scorer 'calculator' asks the checker of steps, which task {task.name!r} has not: with "
                    "--trajectories, 'prm:MODEL' or 'module:function' need none"
                )
            Calculator(task)  # refuses a task without a checker
        if self.evidence_weights is not None:
            from lockstitch.stitching.evidence_model import check_weights

            check_weights(self.evidence_weights, self.scorer, task.concludes and solver_name(self, task) != NONE)
        self.rule = self.rule or (PATH if task.checker is not None else "paper")
        if self.rescore and self.rule != PATH:
            raise ValueError(f"rescore=True would be ignored: rule={self.rule!r} puts no chain together; path does")
        if self.rounds is None:
            self.rounds = self.rule == PATH and self.comparing is None
        self.check_rounds()
        self._check_methods()
        if self.methods is not None:
            from lockstitch.stitching.method_names import absent

            solves = solver_name(self, task) != NONE
            samples = self.trajectories is None
            missing = absent(samples=samples, solves=solves, comparing=self.comparing, methods=self.methods)
            for name, reason in missing.items():
                raise ValueError(f"methods: {name} cannot run: {reason}")
            planless = not task.embedded or task.spell_out is None
            if "plan_then_diffuse" in self.methods and self.planner is None and planless:
                raise ValueError(f"methods: plan_then_diffuse needs a --planner: no embedded model plans {task.name}")

    @property
    def comparing(self) -> str | None:
        """The scorer, where it (or a part of it) compares trajectories that stand side by side."""
        from lockstitch.stitching.score import COMPARING, scorer_parts

        return self.scorer if COMPARING.intersection(scorer_parts(self.scorer)) else None

    def _check_comparing(self) -> None:
        """Raises `ValueError` where canvases that are denoised one by one would be scored by comparison."""
        alone = [f"{name}=True" for name in ("rounds", "rescore") if getattr(self, name)]
        alone += [f"round_width={self.round_width}"] * (self.round_width is not None)
        if self.comparing is not None and alone:
            raise ValueError(
                f"{alone[0]}: scorer={self.scorer!r} compares N trajectories, and a canvas that is denoised by itself, or "
                "a chain, has none beside it"
            )

    def _check_server(self) -> None:
        of_server = [name for name in SERVER if getattr(self, name) is not None]
        if of_server and not (self.solver or "").startswith("openai:"):
            said = without_passwords(repr(self.solver))
            raise ValueError(f"{', '.join(of_server)} would be ignored: solver={said} is not openai:MODEL@URL")
        if self.solver_timeout is not None and not self.solver_timeout > 0:
            raise ValueError(f"solver_timeout={self.solver_timeout} must be a positive number of seconds")


def solver_name(config: StitchConfig, task: Any) -> str:
    """The solver that is asked for, or that the task has by itself."""
    return config.solver or (EMBEDDED if task.embedded else NONE)
