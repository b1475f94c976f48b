"""Adapters that stand where a model is asked for: a PEFT directory, or the name of one on the hub, and its base.

Reads files alone; `adapters.py` loads them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstitch import EMBEDDED, adapter_and_base, model_name, model_path

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_FACTS = "diffusion.json"  # what config.json says of a diffusion model, where the base's cannot


@dataclass(frozen=True)
class Adapter:
    """An adapter and the base that it is for.

    Attributes:
        path: what was asked for: a directory or a name on the hub.
        directory: where its files lie.
        config: its adapter_config.json.
        base: a directory, a name on the hub, or `embedded:NAME`.
        base_revision: the base's revision on the hub; None for a directory.
    """

    path: str
    directory: Path
    config: Mapping[str, Any]
    base: str
    base_revision: str | None

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer lies beside it."""
        return (self.directory / "tokenizer_config.json").is_file()

    @property
    def facts(self) -> dict[str, Any] | None:
        """How the adapted model attends and predicts, where the adapter says so itself; None leaves it to the base.

        Raises `ValueError` in one line for a file that cannot be read.
        """
        return read_facts(self.directory)


def read_facts(directory: Path) -> dict[str, Any] | None:
    """See `Adapter.facts`."""
    path = directory / ADAPTER_FACTS
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"the adapter {str(directory)!r} cannot be read: {ADAPTER_FACTS} is no JSON ({error})"
        ) from error
    if not isinstance(facts, dict) or not {"family", "mask_token_id"} <= facts.keys():
        raise ValueError(
            f"the adapter {str(directory)!r} cannot be read: {ADAPTER_FACTS} names no family and mask_token_id"
        )
    return facts


def find_adapter(path: str, revision: str | None = None) -> Adapter | None:
    """The adapter at a path or a name on the hub, or of `ADAPTER@BASE`; None where there is none, or a whole model.

    Raises `ValueError` in one line for an adapter whose weights or whose base nothing names, and where what stands before an
    `@` is no adapter.
    """
    parts = adapter_and_base(path)
    if parts is not None:
        place, other = parts
    else:
        place, other = model_path(path), None
    directory = Path(place) if Path(place).is_dir() else _on_the_hub(place, revision)
    if directory is None or not (directory / ADAPTER_CONFIG).is_file() or (directory / "config.json").is_file():
        if other is not None:
            raise ValueError(f"{place!r} is no adapter (it has no {ADAPTER_CONFIG}), so {path!r} is none on a base")
        return None
    try:
        config = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"the adapter {path!r} cannot be read: {ADAPTER_CONFIG} is no JSON ({error})") from error
    base = other or config.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"the adapter {path!r} names no base (base_model_name_or_path in its {ADAPTER_CONFIG})")
    if not (directory / ADAPTER_WEIGHTS).is_file():
        raise ValueError(f"the adapter {path!r} has an {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS}")
    base = model_name(base)
    is_here = base.startswith(EMBEDDED) or Path(base).is_dir()
    return Adapter(path, directory, config, base, None if is_here or other else config.get("revision"))


def _on_the_hub(name: str, revision: str | None) -> Path | None:
    """The folder of the hub's cache with an adapter's files; None for a whole model, and for what is not there."""
    from transformers.utils import cached_file

    quiet = dict.fromkeys(("missing_entries", "connection_errors", "gated_repo"), False)
    asked: dict[str, Any] = {
        "revision": revision,
        **{f"_raise_exceptions_for_{what}": no for what, no in quiet.items()},
    }
    try:
        if cached_file(name, "config.json", **asked) is not None:
            return None
        found = cached_file(name, ADAPTER_CONFIG, **asked)
        if found is None:
            return None
        for file in (ADAPTER_WEIGHTS, ADAPTER_FACTS, "tokenizer_config.json", "tokenizer.json"):
            cached_file(name, file, **asked)
    except (OSError, ValueError):  # no such name: whoever reads the config says so
        return None
    return Path(found).parent
