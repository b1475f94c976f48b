"""Reasoning and reinforcement-learning post-training of diffusion language models.

The rooms: `lockstitch.sampling` draws trajectories, `lockstitch.stitching` combines their best steps, `lockstitch.rewards`
says what is right, `lockstitch.rl` trains, `lockstitch.recipes` launches. Importing the umbrella loads none of them; the
names below are loaded from their rooms when they are first asked for.

    from lockstitch import Denoiser, SamplerConfig, sample
"""

import os
import sys


def _leave_working_directory() -> None:
    """Takes the working directory off the path where `python -m lockstitch...` put it, and nobody else will look for it.

    A file there that bears a library's name must not be run in the place of the library. What a user names is found without.
    """
    words = getattr(sys, "orig_argv", [])
    module = next((words[i + 1] for i, word in enumerate(words[:-1]) if word == "-m"), "")
    started_here = module.partition(".")[0] == __name__ and not sys.flags.safe_path
    if started_here and sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]


_leave_working_directory()  # before anything else is imported

from importlib import import_module, resources  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    from lockstitch.rl.grpo import DiffusionGRPOTrainer
    from lockstitch.rl.grpo_config import DiffusionGRPOConfig
    from lockstitch.rl.sft import DiffusionSFTTrainer
    from lockstitch.rl.sft_config import DiffusionSFTConfig
    from lockstitch.sampling.config import SamplerConfig
    from lockstitch.sampling.denoiser import Denoiser
    from lockstitch.sampling.loop import sample
    from lockstitch.sampling.presets import preset
    from lockstitch.sampling.trajectory import Trajectory

__version__ = "0.1.0"

__all__ = [
    "Denoiser",
    "DiffusionGRPOConfig",
    "DiffusionGRPOTrainer",
    "DiffusionSFTConfig",
    "DiffusionSFTTrainer",
    "SamplerConfig",
    "Trajectory",
    "adapter_and_base",
    "embedded_adapter",
    "embedded_model",
    "embedded_scorer",
    "model_name",
    "model_path",
    "preset",
    "sample",
]
_ROOMS = {
    "Denoiser": "sampling.denoiser",
    "DiffusionGRPOConfig": "rl.grpo_config",
    "DiffusionGRPOTrainer": "rl.grpo",
    "DiffusionSFTConfig": "rl.sft_config",
    "DiffusionSFTTrainer": "rl.sft",
    "SamplerConfig": "sampling.config",
    "Trajectory": "sampling.trajectory",
    "preset": "sampling.presets",
    "sample": "sampling.loop",
}

EMBEDDED = "embedded:"


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})


def embedded_model(name: str) -> Path:
    """The directory of a model that comes with the package: `arithmetic`, `countdown`, `sudoku`, `solver`, ...

    Raises `ValueError` that lists the models there are.
    """
    return _embedded(name, "model", "*/model.safetensors")


def embedded_adapter(name: str) -> Path:
    """The directory of a PEFT adapter that comes with the package, by the name of the model that it is for.

    Raises `ValueError` that lists the adapters there are.
    """
    return _embedded(name, "adapter", "adapters/*/adapter_model.safetensors")


def embedded_scorer(name: str) -> Path:
    """The directory of a process reward model that comes with the package, by its task: `sudoku` or `countdown`.

    Raises `ValueError` that lists the scorers there are, and names what judges an embedded task without one.
    """
    return _embedded(
        name, "scorer", "scorers/*/model.safetensors", f"; for arithmetic there is likelihood:{EMBEDDED}arithmetic"
    )


def model_path(name: str) -> str:
    """What to load a model from: `embedded:NAME` becomes the directory of one that comes with the package, and the name of
    a directory or of a model on the hub stays as it is.

    `ADAPTER@BASE`, an adapter on a base other than the one that it names, stays so, each part being made what it is.

    Raises `ValueError` for an embedded model that does not exist, and for `embedded` alone, which is on no hub.
    """
    if (parts := adapter_and_base(name)) is not None:
        return "@".join(parts)
    if name in (EMBEDDED, EMBEDDED.rstrip(":")) and not Path(name).exists():
        return str(embedded_model(name))  # which says what there is
    return str(embedded_model(name.removeprefix(EMBEDDED))) if name.startswith(EMBEDDED) else name


def adapter_and_base(name: str) -> tuple[str, str] | None:
    """The two directories or hub names of `ADAPTER@BASE`; None for what is not of that form, or is a directory.

    `embedded:NAME` before the sign is an adapter that comes with the package, and behind it a model.
    """
    adapter, sign, base = name.partition("@")
    if not (adapter and sign and base) or Path(name).exists():
        return None
    if adapter.startswith(EMBEDDED):
        adapter = str(embedded_adapter(adapter.removeprefix(EMBEDDED)))
    return adapter, model_path(base)


def model_name(path: str) -> str:
    """The inverse of `model_path`: the directory of an embedded model, here or on another machine, becomes `embedded:NAME`.

    What is no such directory stays as it is.
    """
    place = Path(path)
    is_ours = place.parent.name == "embedded" and place.parent.parent.name == "lockstitch"
    return f"{EMBEDDED}{place.name}" if is_ours else path


def _embedded(name: str, kind: str, pattern: str, beside: str = "") -> Path:
    root = Path(str(resources.files(__name__))) / "embedded"
    known = {path.parent.name: path.parent for path in sorted(root.glob(pattern))}
    if name not in known:
        raise ValueError(f"no embedded {kind} {name!r}; there are {', '.join(known)}{beside}")
    return known[name]
