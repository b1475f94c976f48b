"""Reasoning and reinforcement-learning post-training of diffusion language models.

The rooms: `lockstitch.sampling` draws trajectories, `lockstitch.stitching` combines their best steps, `lockstitch.rewards`
says what is right, `lockstitch.rl` trains, `lockstitch.recipes` launches. Importing the umbrella loads none of them.
"""

from importlib import resources
from pathlib import Path

__version__ = "0.1.0"


def embedded_model(name: str) -> Path:
    """The directory of a model that comes with the package: `arithmetic`, `countdown`, `sudoku`, `solver`, ...

    Raises `ValueError` that lists the models there are.
    """
    root = Path(str(resources.files(__name__))) / "embedded"
    known = sorted(path.parent.name for path in root.glob("*/model.safetensors"))
    if name not in known:
        raise ValueError(f"no embedded model {name!r}; there are {', '.join(known)}")
    return root / name
