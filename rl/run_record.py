"""`run.json`: what a training run was, beside what it left behind, so that its adapter can be exported without guessing.

A recipe writes it into its output directory with the first checkpoint; `lockstitch export` reads it.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lockstitch.errors import without_passwords
from lockstitch.files import to_json, write_whole

RUN = "run.json"
_SECRET = {"hub_token", "push_to_hub_token"}
# Fields of transformers' and TRL's configs that these set by themselves.
_DERIVED = {
    "activation_checkpointing",
    "completion_only_loss",
    "debug",
    "disable_tqdm",
    "do_eval",
    "pad_to_multiple_of",
}


@dataclass(frozen=True)
class RunRecord:
    """A training run.

    Attributes:
        base: the model that it started from: a hub name or a path.
        revision: the base's commit on the hub (`base_revision`), None for a path.
        stage: `sft`, `adapt`, `grpo` or `prm`.
        family: the base's, one of `lockstitch.sampling.families.FAMILIES`; None for an autoregressive model.
        task: the task whose problems it was trained on, if it was one.
        data: the data set, if it was one.
        preset: the preset of the recipe, if there was one.
        config: the settings that differ from their defaults.
        device: where it was last trained: `cpu`, `cuda:0`.
        dtype: the numbers that the model's weights are held in, `float32` say.
        contents: a sha256 for each option, and each source of the task, that is a file or folder of rows on this machine.
    """

    base: str
    revision: str | None
    stage: str
    family: str | None
    task: str | None = None
    data: str | None = None
    preset: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None
    dtype: str | None = None
    contents: Mapping[str, str] = field(default_factory=dict)


def base_revision(base: str, asked: str) -> str | None:
    """The commit of a base that was loaded from the hub, as its cache tells, else the revision that was asked for; None for
    one from a path."""
    from huggingface_hub import try_to_load_from_cache

    if Path(base).is_dir():
        return None
    cached = try_to_load_from_cache(base, "config.json", revision=asked)
    return Path(cached).parent.name if isinstance(cached, str) else asked


def changed_settings(*configs: Any) -> dict[str, Any]:
    """The fields of config dataclasses that differ from their defaults and that JSON can hold, in order.

    Tokens are left out, and so are passwords in addresses.
    """
    changed = {}
    for config in configs:
        for one in fields(config):
            value = getattr(config, one.name)
            default = one.default_factory() if one.default_factory is not MISSING else one.default
            if one.init and one.name not in _DERIVED | _SECRET and value != default and _plain(value):
                changed[one.name] = without_passwords(value) if isinstance(value, str) else value
    return changed


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_plain, value.values()))
    return value is None or isinstance(value, bool | int | float | str)


def write_run(directory: Path, record: RunRecord) -> None:
    """Writes the record into a run's output directory, in place of an earlier launch's."""
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / RUN, to_json(asdict(record)))


def read_run(directory: Path) -> RunRecord | None:
    """The record of a run's output directory, or of the run that a checkpoint directory lies in; None where there is none.

    Raises `ValueError` for a file that is no such record.
    """
    for path in (directory / RUN, directory.parent / RUN):
        if not path.is_file():
            continue
        try:
            return RunRecord(**json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path} is no record of a run: {error}") from error
    return None
