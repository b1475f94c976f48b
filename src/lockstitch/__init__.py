"""Reasoning and reinforcement-learning post-training of diffusion language models.

The rooms: `lockstitch.sampling` draws trajectories, `lockstitch.stitching` combines their best steps, `lockstitch.rewards`
says what is right, `lockstitch.rl` trains, `lockstitch.recipes` launches. Importing the umbrella loads none of them.
"""

from importlib import resources
from pathlib import Path

__version__ = "0.1.0"

EMBEDDED = "embedded:"


def embedded_model(name: str) -> Path:
    """The directory of a model that comes with the package: `arithmetic`, `countdown`, `sudoku`, `solver`, ...

    Raises `ValueError` that lists the models there are.
    """
    return _embedded(name, "model", "*/model.safetensors")


def embedded_adapter(name: str) -> Path:
    """The directory of a PEFT adapter that comes with the package, by the name of the embedded model that it is for.

    Raises `ValueError` that lists the adapters there are.
    """
    return _embedded(name, "adapter", "adapters/*/adapter_model.safetensors")


def model_path(name: str) -> str:
    """What to load a model from: `embedded:NAME` becomes the directory of one that comes with the package, and the name of
    a directory or of a model on the hub stays as it is.

    Raises `ValueError` for an embedded model that does not exist.
    """
    return str(embedded_model(name.removeprefix(EMBEDDED))) if name.startswith(EMBEDDED) else name


def _embedded(name: str, kind: str, pattern: str) -> Path:
    root = Path(str(resources.files(__name__))) / "embedded"
    known = {path.parent.name: path.parent for path in sorted(root.glob(pattern))}
    if name not in known:
        raise ValueError(f"no embedded {kind} {name!r}; there are {', '.join(known)}")
    return known[name]
