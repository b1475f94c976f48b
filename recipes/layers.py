"""The layers of a recipe's settings: a preset, on it a config file, on that the command line.

A preset (`recipes/presets/NAME.yaml`) and a config file hold the same keys, and may leave out any. Nothing is passed over: a
key that no one knows is refused with the nearest that is known, a number with a fraction is refused where a whole one is
needed. What a preset says of its adapter (`lora_*`, `load_in_*`) belongs to its `use_peft: true` and is laid down with it: a
config or command line that says `use_peft: false` trains all weights and needs not undo the rest.

Left out: more than one config file, and includes.
"""

import argparse
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from lockstitch.rewards.imports import nearest

from lockstitch.settings import read_yaml

_ADAPTER = ("lora_", "load_in_", "bnb_", "use_bnb_", "use_rslora", "use_dora")


def folder(name: str) -> Path:
    """A folder of YAML files that comes with the recipes: `presets`, `configs` or `accelerate`."""
    return Path(str(resources.files("lockstitch.recipes"))) / name


def preset_names() -> list[str]:
    """The presets there are."""
    return sorted(path.stem for path in folder("presets").glob("*.yaml"))


def preset_file(name: str) -> Path:
    """The file of a preset; `ValueError` lists the known ones and says the nearest."""
    if name not in preset_names():
        raise ValueError(f"rl_preset={name!r} is not one of {', '.join(preset_names())}{nearest(name, preset_names())}")
    return folder("presets") / f"{name}.yaml"


def config_file(name: str) -> Path:
    """A config file: where `name` leads, or else in the recipes' own `configs` (`tiny/sudoku.yaml`)."""
    for path in (Path(name), folder("configs") / name):
        if path.is_file():
            return path
    raise ValueError(f"config {name!r} is neither a file nor one of the recipes' own (as in tiny/sudoku.yaml)")


def check_settings(parser: argparse.ArgumentParser, settings: Mapping[str, Any], where: Path) -> None:
    """Raises `ValueError` for keys that the parser does not know, and for fractions where whole numbers are needed."""
    actions = {action.dest: action for action in parser._actions}
    # A pasted `env:` would set variables of the process, which a page of settings should not.
    unknown = [key for key in settings if key not in actions or key == "help"]
    if unknown:
        hints = ", ".join(f"{key!r}{nearest(str(key), actions)}" for key in unknown)
        raise ValueError(f"{where} holds unknown options: {hints}")
    for key, value in settings.items():
        # The parser converts texts alone; numbers of a YAML file reach the dataclass as they are.
        if isinstance(value, float) and not _reads(actions[key], value):
            raise ValueError(f"{where}: {key}={value} must be a whole number")


def _reads(action: argparse.Action, value: float) -> bool:
    """Whether an option could be given this number on the command line."""
    if not callable(action.type):
        return True
    try:
        action.type(repr(value))
    except (ValueError, argparse.ArgumentTypeError):
        return False
    return True


def parse_layers(parser: Any, argv: Sequence[str]) -> tuple[Any, ...]:
    """What the parser's dataclasses become under the preset, the config file and the command line.

    Args:
        parser: a `TrlParser`, one of whose dataclasses has the field `rl_preset`.
        argv: the command line, `--config FILE` among it.

    Raises:
        ValueError: a file or preset that does not exist, an unknown option anywhere, or what the dataclasses refuse.
    """
    from transformers.hf_argparser import string_to_bool

    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config")
    early.add_argument("--rl_preset")
    early.add_argument("--use_peft", nargs="?", const=True, type=string_to_bool)
    said, _ = early.parse_known_args(argv)
    rest = [*argv]
    config: dict[str, Any] = {}
    if said.config is not None:
        place = next(i for i, word in enumerate(rest) if word == "--config" or word.startswith("--config="))
        del rest[place : place + (2 if rest[place] == "--config" else 1)]
        path = config_file(said.config)
        config = read_yaml(path)
        check_settings(parser, config, path)
    preset: dict[str, Any] = {}
    name = said.rl_preset or config.get("rl_preset")
    if name is not None:
        path = preset_file(name)
        preset = read_yaml(path)
        check_settings(parser, preset, path)
        if not (said.use_peft if said.use_peft is not None else config.get("use_peft", preset.get("use_peft", False))):
            preset = {key: value for key, value in preset.items() if not key.startswith(_ADAPTER)}
    parser.set_defaults_with_config(**{**preset, **config})
    _, strings = parser.parse_known_args(rest)
    if strings:
        options = [action.dest for action in parser._actions]
        hints = ", ".join(f"{word!r}{nearest(word.lstrip('-').partition('=')[0], options)}" for word in strings)
        raise ValueError(f"unknown words on the command line: {hints}")
    return tuple(parser.parse_args_into_dataclasses(args=rest))
