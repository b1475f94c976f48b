"""What the folders of models held when a run was begun, so that it does not go on with others of the same name.

Left out: models of the hub, whose names stand for what they are, and those that come with the package.
"""

import json
from pathlib import Path

from lockstitch import adapter_and_base
from lockstitch.files import sha256

_SUFFIXES = (".json", ".safetensors", ".bin")
_OF_TRAINING = ("trainer_state.json", "training_args.bin", "run.json", "summary.json")


def model_files(folder: Path) -> list[Path]:
    """The files of a folder that hold a model: config, tokenizer and weights."""
    return sorted(path for path in folder.glob("*") if path.suffix in _SUFFIXES and path.name not in _OF_TRAINING)


def sums_of_models(*names: str | None) -> dict[str, str]:
    """A SHA-256 for each folder that these models are loaded from, that of the base below an adapter among them."""
    found: dict[str, str] = {}
    left = [name for name in names if name is not None]
    while left:
        for part in adapter_and_base(name := left.pop()) or (name,):
            if part in found or not Path(part).is_dir():
                continue
            found[part] = sha256(*model_files(Path(part)))
            if part == name and (base := _base_of(Path(part))) is not None:
                left.append(base)
    return found


def _base_of(folder: Path) -> str | None:
    """The base that an adapter's folder names."""
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return base if isinstance(base, str) else None
