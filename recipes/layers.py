"""The layers of a recipe's settings: a preset, on it a config file, on that the command line.

A preset (`recipes/presets/NAME.yaml`, of adaptation `recipes/presets/adapt/NAME.yaml`) and a config file hold the same
keys, and may leave out any. Nothing is passed over: `lockstitch.options` says what is refused. What a preset says of its
adapter (`lora_*`, `load_in_*`) belongs to its own `use_peft: true` and is laid down with it: a config or command line that
says `use_peft: false` trains all weights and needs not undo the rest.

Left out: more than one config file, and includes.
"""

import argparse
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from lockstitch.rewards.imports import nearest

from lockstitch.options import check_settings, parse_options, read_yaml, split_config

PRESETS = {"rl_preset": "presets", "adapt_preset": "presets/adapt"}  # the option that names one, and where they are
_ADAPTER = ("lora_", "load_in_", "bnb_", "use_bnb_", "use_rslora", "use_dora")


def folder(name: str) -> Path:
    """A folder of YAML files that comes with the recipes: `presets`, `configs` or `accelerate`."""
    return Path(str(resources.files("lockstitch.recipes"))) / name


def preset_names(option: str = "rl_preset") -> list[str]:
    """The presets there are."""
    return sorted(path.stem for path in folder(PRESETS[option]).glob("*.yaml"))


def preset_file(name: str, option: str = "rl_preset") -> Path:
    """The file of a preset; `ValueError` lists the known ones and says the nearest."""
    known = preset_names(option)
    if name not in known:
        raise ValueError(f"{option}={name!r} is not one of {', '.join(known)}{nearest(name, known)}")
    return folder(PRESETS[option]) / f"{name}.yaml"


def config_file(name: str) -> Path:
    """A config file: where `name` leads, or else in the recipes' own `configs` (`tiny/sudoku.yaml`)."""
    for path in (Path(name), folder("configs") / name):
        if path.is_file():
            return path
    raise ValueError(f"config {name!r} is neither a file nor one of the recipes' own (as in tiny/sudoku.yaml)")


def parse_layers(parser: Any, argv: Sequence[str], option: str = "rl_preset") -> tuple[Any, ...]:
    """What the parser's dataclasses become under the preset, the config file and the command line.

    Args:
        parser: a `TrlParser`, one of whose dataclasses has the field `option` if there are to be presets.
        argv: the command line, `--config FILE` among it.
        option: which names the preset.

    Raises:
        ValueError: a file or preset that does not exist, an unknown option anywhere, or what the dataclasses refuse.
    """
    from transformers.hf_argparser import string_to_bool

    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument(f"--{option}", dest="preset")
    early.add_argument("--use_peft", nargs="?", const=True, type=string_to_bool)
    named, rest = split_config(argv)
    said, _ = early.parse_known_args(rest)
    config: dict[str, Any] = {}
    if named is not None:
        path = config_file(named)
        config = check_settings(parser, read_yaml(path), path)
    preset: dict[str, Any] = {}
    name = said.preset or config.get(option)
    if name is not None:
        path = preset_file(name, option)
        preset = check_settings(parser, read_yaml(path), path)
        if not (said.use_peft if said.use_peft is not None else config.get("use_peft", preset.get("use_peft", False))):
            preset = {key: value for key, value in preset.items() if not key.startswith(_ADAPTER)}
    parsed = parse_options(parser, rest, {**preset, **config})
    for one in parsed:
        check_trackers(getattr(one, "report_to", None) or ())
    return parsed


def check_trackers(names: Sequence[str]) -> None:
    """Raises `ValueError` for trackers that nobody knows, or that are not installed."""
    from transformers.integrations import integration_utils

    known = {**integration_utils.INTEGRATION_TO_CALLBACK}
    for name in {*([names] if isinstance(names, str) else names)} - {"none", "all"}:
        if name not in known:
            raise ValueError(
                f"report_to={name!r} is not one of none, all, {', '.join(sorted(known))}{nearest(name, known)}"
            )
        available = getattr(integration_utils, f"is_{name}_available", lambda: True)
        if not available():
            raise ValueError(f"report_to={name!r}: {name} is not installed; pip install {name}")
