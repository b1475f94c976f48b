"""Loading what `lockstitch stitch` works with: the diffusion model and its sampler, the scorer, the solver, the planner."""

from dataclasses import replace
from typing import Any

from lockstitch.stitching.config import EMBEDDED, NONE, NUM_TRAJECTORIES, SERVER, StitchConfig, solver_name

TEMPERATURE = 0.7


def load_denoiser(config: StitchConfig, task: Any) -> tuple[Any, Any]:
    """The diffusion model and its settings; None twice for trajectories from elsewhere."""
    if config.trajectories is not None:
        return None, None
    embedded = config.model is None
    from lockstitch.sampling.chat import Chat
    from lockstitch.sampling.compiled import check_compiled
    from lockstitch.sampling.config import SamplerConfig
    from lockstitch.sampling.denoiser import Denoiser
    from lockstitch.sampling.layouts import check_layout, in_blocks_of
    from lockstitch.sampling.loading import layout_of
    from lockstitch.sampling.presets import PRESETS, preset

    from lockstitch import embedded_model

    if embedded and not task.embedded:
        raise ValueError(f"no embedded model does {task.name}: name one with --model, or give --trajectories")
    canvas = config.canvas_length or task.canvas_length
    if canvas is None:
        raise ValueError(f"task {task.name!r} has no canvas length of its own: say --canvas_length")
    path = str(embedded_model(task.name)) if embedded else str(config.model)
    family, _ = layout_of(path, config.family)
    said = {name: getattr(config, name) for name in ("block_length", "policy", "steps", "threshold")}
    said |= {"temperature": config.temperature, "batch_size": config.batch_size}
    settings = {name: value for name, value in said.items() if value is not None}
    if config.preset is not None:
        own = {} if "temperature" in PRESETS.get(config.preset, ()) else {"temperature": TEMPERATURE}
        # Recombined canvases have the length that was asked for: the last block ends with it.
        own["whole_blocks"] = False
        sampler_config = in_blocks_of(preset(config.preset, canvas, **(own | settings)), family)
    else:
        settings = {"temperature": TEMPERATURE} | settings
        sampler_config = in_blocks_of(SamplerConfig(canvas_length=canvas, **settings), family)
        if sampler_config.policy == "quota" and config.steps is None:
            blocks = sampler_config.blocks
            sampler_config = replace(sampler_config, steps=max(blocks, canvas // 4 // blocks * blocks))
    check_layout(sampler_config, family)
    n = config.num_trajectories or NUM_TRAJECTORIES
    if n > 1 and sampler_config.temperature == 0 and sampler_config.policy != "random":
        raise ValueError(
            f"temperature=0: the {n} trajectories of a problem would all be the same; --num_trajectories 1, or more heat"
        )
    if config.compile:
        check_compiled(sampler_config)
    denoiser = Denoiser.from_pretrained(
        path,
        family=config.family,
        mask_id=config.mask_id,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
    )
    if config.compile:
        denoiser.compile_layers()
    system = config.system_prompt if config.system_prompt is not None else task.system
    denoiser.chat = Chat.of(denoiser.tokenizer, config.chat_template, system)
    return denoiser, sampler_config


def load_scorer(config: StitchConfig, task: Any, denoiser: Any) -> Any:
    """The scorer; `denoiser` for those that ask it."""
    from lockstitch.stitching import score

    return score.load_scorer(
        config.scorer,
        task,
        trust_remote_code=config.trust_remote_code,
        denoiser=denoiser,
        weights=config.scorer_weights,
        batch_size=config.batch_size,
        device=config.device,
    )


def load_solver(config: StitchConfig, task: Any) -> Any:
    """The solver, or None."""
    from lockstitch.stitching import refine

    from lockstitch import embedded_model

    name = solver_name(config, task)
    if name == NONE:
        return None
    if name == EMBEDDED and not task.embedded:
        raise ValueError(f"the embedded solver does not know {task.name}: name another --solver, or none")
    said = {option: getattr(config, option) for option in SERVER}
    retries = {option.removeprefix("solver_"): value for option, value in said.items() if value is not None}
    named = str(embedded_model("solver")) if name == EMBEDDED else name
    return refine.load_solver(named, task, device=config.device, **retries)


def load_planner(config: StitchConfig, task: Any) -> Any:
    """The planner that `plan_then_diffuse` asks, or None where that method does not run."""
    from lockstitch.stitching import refine
    from lockstitch.stitching.plans import AnswerPlanner, TextPlanner

    from lockstitch import embedded_model

    if "plan_then_diffuse" not in (config.methods or ()):
        return None
    if config.planner not in (None, EMBEDDED):
        return TextPlanner.from_pretrained(str(config.planner), task, config.device)
    if not task.embedded:
        raise ValueError(f"the embedded solver does not know {task.name}: name another --planner")
    return AnswerPlanner(refine.load_solver(str(embedded_model("solver")), task, device=config.device), task)
