"""YAML files of settings, and command lines that may name one with `--config`.

A page of settings sets options and nothing else: a tag that makes objects, a key that stands twice, and `env:`, by which TRL
would set variables of the process, are refused.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; `ValueError` in one line if it holds anything else, or no YAML."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses keys that stand twice, of which the other loaders take the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
            twice = sorted({key for key in keys if keys.count(key) > 1})
            if twice:
                raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} stands twice", node.start_mark)
            made: dict[Any, Any] = super().construct_mapping(node, deep)
            return made

    try:
        settings = yaml.load(path.read_text(encoding="utf-8-sig"), Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ValueError(f"{path}{where}: not YAML that is read here: {' '.join(str(error.problem).split())}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a mapping of options, not {type(settings).__name__}")
    return settings


def parse_options(parser: Any, argv: Sequence[str] | None, **how: Any) -> Any:
    """What a `TrlParser` makes of a command line and its `--config`, whose file is looked at first.

    Args:
        parser: the parser.
        argv: the command line; the process's own if None.
        how: further arguments of `parse_args_and_config`.

    Raises:
        ValueError: the file is not there, is no mapping, or has `env:`.
    """
    import sys

    words = list(sys.argv[1:] if argv is None else argv)
    named = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--config"]
    named += [word.partition("=")[2] for word in words if word.startswith("--config=")]
    for name in named:
        if not Path(name).is_file():
            raise ValueError(f"config {name!r} is not a file")
        if "env" in read_yaml(Path(name)):
            raise ValueError(f"{name}: env would set variables of the process, which a page of settings must not; it holds "
                             "options alone")  # fmt: skip
    return parser.parse_args_and_config(words, **how)
