"""Which rewards there are, and how one is found by its name.

A package offers rewards as entry points of the group `lockstitch.rewards`; ours are declared in the same way. They are
listed without importing anything: what a reward needs and does is read from the source text of its module, which is found
without running it. A reward that no package offers is named by its place: `path/to/file.py:function`, or
`package.module:function` (on TRL's command line `package.module.function`), looked for in the working directory first.

Left out: registries and decorators, which would need the import that listing must not do.
"""

import ast
import difflib
import importlib
import importlib.util
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from lockstitch.rewards.contract import RESERVED

from lockstitch.errors import OthersCodeError, others_code

GROUP = "lockstitch.rewards"
UNKNOWN = "?"


@dataclass(frozen=True)
class RewardInfo:
    """What is known of a reward without importing it.

    Attributes:
        name: what it is called.
        source: the distribution that offers it, with its version.
        target: where it is, `package.module:function`.
        columns: the columns that it reads, as its docstring's line `Columns: ...` says or else its arguments' names (those
            with a default in brackets); empty if it needs none, `?` if that cannot be told.
        summary: the first line of its docstring; `?` if there is none.
    """

    name: str
    source: str
    target: str
    columns: str
    summary: str


def available_rewards() -> list[RewardInfo]:
    """All rewards that installed packages offer, by name; nothing is imported."""
    return sorted((_info(point) for point in _points()), key=lambda info: (info.name, info.source))


def load_reward(spec: str) -> Callable[..., Any]:
    """The reward of that name, or at that place.

    Args:
        spec: a listed name; or `path/to/file.py:function`, `package.module:function`, or `package.module.function`.

    Raises:
        ValueError: there is no such reward, with the known ones and the nearest; or several packages offer one of that
            name; or what was found cannot be called.
    """
    points = [point for point in _points() if point.name == spec]
    if len(points) > 1:
        sources = " and ".join(sorted(f"{_source(point)} ({point.value})" for point in points))
        raise ValueError(f"reward {spec!r} is offered by {sources}; name the one you mean as package.module:function")
    if not points and spec.partition(":")[0].endswith(".py"):
        return _in_file(spec, Path(spec.partition(":")[0]), spec.partition(":")[2])
    module, path = _place(points[0].value if points else spec)
    if not module or not path:
        raise ValueError(_unknown(spec))
    return _callable(spec, module, path)


def _points() -> Iterable[EntryPoint]:
    return entry_points(group=GROUP)


def _place(value: str) -> tuple[str, str]:
    """Module and path of `package.module:function` or `package.module.function`; empty where there is no module."""
    value = value.partition("[")[0].strip()  # extras, which an entry point may name behind its place
    module, _, path = value.partition(":") if ":" in value else value.rpartition(".")
    return module.strip(), path.strip()


def _source(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else UNKNOWN


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the known words that are like this one; empty if none is."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def _unknown(spec: str) -> str:
    known = sorted({point.name for point in _points()})
    if not known:
        return (
            f"reward {spec!r} is unknown, and so are all others: lockstitch's metadata is missing or older than its code; "
            "install it again, or name a function as package.module:function"
        )
    return (
        f"reward {spec!r} is neither package.module:function nor one of {', '.join(known)}{nearest(spec, known)}"
    )


def _callable(spec: str, module_name: str, path: str) -> Callable[..., Any]:
    """Imports what is named, with the working directory first on the path."""
    if module_name.startswith("."):
        raise ValueError(_unknown(spec))
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        with others_code(f"reward {spec!r}: the module {module_name!r}"):
            found: Any = importlib.import_module(module_name)
    except OthersCodeError as error:
        missing = error.__cause__.name if isinstance(error.__cause__, ModuleNotFoundError) else None
        # An import that fails inside the module is the module's own affair.
        if missing is None or not f"{module_name}.".startswith(f"{missing}."):
            raise
        raise ValueError(f"reward {spec!r}: there is no module {missing!r} (looked in {here} first)") from error
    finally:
        sys.path.remove(here)
    return _attribute(spec, module_name, found, path)


def _in_file(spec: str, file: Path, path: str) -> Callable[..., Any]:
    """The function of that name in a file, which is run as a module of its own; what lies beside it can be imported."""
    if not path:
        raise ValueError(f"reward {spec!r} names no function: {file}:FUNCTION")
    if not file.is_file():
        raise ValueError(f"reward {spec!r}: {str(file)!r} is not a file")
    name = f"lockstitch_file_{zlib.crc32(str(file.resolve()).encode()):x}"
    found = sys.modules.get(name)
    if found is None:
        place = importlib.util.spec_from_file_location(name, file)
        assert place is not None
        assert place.loader is not None
        found = sys.modules[name] = importlib.util.module_from_spec(place)
        here = str(file.resolve().parent)
        sys.path.insert(0, here)
        try:
            with others_code(f"reward {spec!r}: {file}"):
                place.loader.exec_module(found)
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error.__cause__, SyntaxError):
                line, said = error.__cause__.lineno, error.__cause__.msg
                raise ValueError(f"reward {spec!r}: {file} is no Python, line {line}: {said}") from error
            raise
        finally:
            sys.path.remove(here)
    return _attribute(spec, str(file), found, path)


def _attribute(spec: str, module_name: str, found: Any, path: str) -> Callable[..., Any]:
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            offered = [key for key in dir(found) if not key.startswith("_")]
            raise ValueError(f"reward {spec!r}: {module_name} has no {path!r}{nearest(name, offered)}") from error
    if not callable(found):
        raise ValueError(f"reward {spec!r} is {found!r}, which cannot be called")
    reward: Callable[..., Any] = found
    return reward


# --- reading without importing ---------------------------------------------------------------------------------------


def _info(point: EntryPoint) -> RewardInfo:
    columns, summary = UNKNOWN, UNKNOWN
    module, path = _place(point.value)
    tree = _parsed(module) if module else None
    if tree is not None:
        columns, summary = _describe(tree, path)
    return RewardInfo(point.name, _source(point), point.value, columns, summary)


def _find_spec(module_name: str) -> ModuleSpec | None:
    """What `importlib.util.find_spec` finds, without importing the parent packages on the way."""
    path: list[str] | None = None
    spec: ModuleSpec | None = None
    parts = module_name.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        specs = (finder.find_spec(name, path) for finder in sys.meta_path)
        spec = next((found for found in specs if found is not None), None)
        if spec is None or (depth < len(parts) and spec.submodule_search_locations is None):
            return None
        path = list(spec.submodule_search_locations or [])
    return spec


def _parsed(module_name: str) -> ast.Module | None:
    spec = _find_spec(module_name)
    if spec is None or not isinstance(spec.loader, InspectLoader):
        return None
    try:
        source = spec.loader.get_source(module_name)
        return None if source is None else ast.parse(source)
    except (ImportError, OSError, SyntaxError, ValueError):  # no source, or none that this Python reads
        return None


def _describe(tree: ast.Module, attribute: str) -> tuple[str, str]:
    """The columns and the summary of what a module binds to a name: a function, or `per_sample(function)`."""
    wrapped = False
    definition = _definition(tree, attribute)
    if isinstance(definition, ast.Call) and _is_per_sample(definition.func) and definition.args:
        target = definition.args[0]
        wrapped = True
        definition = _definition(tree, target.id) if isinstance(target, ast.Name) else None
    if not isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef):
        return UNKNOWN, UNKNOWN
    wrapped = wrapped or any(map(_is_per_sample, definition.decorator_list))
    lines = [line.strip() for line in (ast.get_docstring(definition) or "").split("\n")]
    said = [line.removeprefix("Columns:").strip().rstrip(".") for line in lines if line.startswith("Columns:")]
    columns = said[0] if said else ", ".join(_arguments(definition.args, skip=1 if wrapped else 0))
    return columns, lines[0] or UNKNOWN


def _definition(tree: ast.Module, name: str) -> ast.AST | None:
    """What the last top-level statement binds to the name: a definition, or the value assigned."""
    found: ast.AST | None = None
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() if node.name == name:
                found = node
            case ast.Assign(targets=[ast.Name(id=target)]) | ast.AnnAssign(target=ast.Name(id=target)) if target == name:
                found = node.value
    return found


def _is_per_sample(node: ast.AST) -> bool:
    return (isinstance(node, ast.Name) and node.id == "per_sample") or (
        isinstance(node, ast.Attribute) and node.attr == "per_sample"
    )


def _arguments(arguments: ast.arguments, skip: int) -> Iterator[str]:
    """The names of the arguments that are columns, those with a default in brackets."""
    positional = [*arguments.posonlyargs, *arguments.args]
    optional = {argument.arg for argument in positional[len(positional) - len(arguments.defaults) :]}
    optional |= {
        argument.arg
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if default is not None
    }
    for argument in [*positional[skip:], *arguments.kwonlyargs]:
        if argument.arg not in RESERVED:
            yield f"[{argument.arg}]" if argument.arg in optional else argument.arg
