"""Which rewards there are, and how one is found by its name.

A package offers rewards as entry points of the group `lockstitch.rewards`; ours are declared in the same way. They are
listed without importing anything: what a reward needs and does is read from the source text of its module, which is found
without running it. A reward that no package offers is named by its place: `path/to/file.py:function`, or
`package.module:function` (on TRL's command line `package.module.function`); see `imports.py`.

Left out: registries and decorators, which would need the import that listing must not do.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.abc import InspectLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from lockstitch.rewards.contract import RESERVED
from lockstitch.rewards.imports import file_of, find_module, load_installed, load_named, nearest

from lockstitch.files import sha256

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


def load_reward(spec: str, beside: Path | None = None) -> Callable[..., Any]:
    """The reward of that name, or at that place.

    Args:
        spec: a listed name; or `path/to/file.py:function`, `package.module:function`, or `package.module.function`.
        beside: the directory in which a module or file of one's own is looked for first; the working directory by default.

    Raises:
        ValueError: there is no such reward, with the known ones and the nearest; or several packages offer one of that
            name; or what was found cannot be called.
    """
    points = [point for point in _points() if point.name == spec]
    if len(points) > 1:
        sources = " and ".join(sorted(f"{source_of(point)} ({point.value})" for point in points))
        raise ValueError(f"reward {spec!r} is offered by {sources}; name the one you mean as package.module:function")
    if points:
        found = load_installed("reward", spec, *place_of(points[0].value))
    elif spec.partition(":")[0].endswith(".py"):
        found = load_named("reward", spec, beside)
    else:
        module, path = place_of(spec)
        if not module or not path:
            raise ValueError(_unknown(spec))
        found = load_named("reward", f"{module}:{path}", beside)
    if not callable(found):
        raise ValueError(f"reward {spec!r} is {found!r}, which cannot be called")
    reward: Callable[..., Any] = found
    return reward


def remembered_reward(spec: str) -> str:
    """What a run remembers of a reward: its name or place, and where that is in a file of one's own the file's sum."""
    file = file_of(spec)
    return spec if file is None else f"{spec} ({sha256(file)[:16]})"


def _points() -> Iterable[EntryPoint]:
    return entry_points(group=GROUP)


def place_of(value: str) -> tuple[str, str]:
    """Module and path of `package.module:function` or `package.module.function`; empty where there is no module."""
    value = value.partition("[")[0].strip()  # extras, which an entry point may name behind its place
    module, _, path = value.partition(":") if ":" in value else value.rpartition(".")
    return module.strip(), path.strip()


def source_of(point: EntryPoint) -> str:
    """The distribution that offers an entry point, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else UNKNOWN


def _unknown(spec: str) -> str:
    known = sorted({point.name for point in _points()})
    if not known:
        return (
            f"reward {spec!r} is unknown, and so are all others: lockstitch's metadata is missing or older than its code; "
            "install it again, or name a function as package.module:function"
        )
    return f"reward {spec!r} is neither package.module:function nor one of {', '.join(known)}{nearest(spec, known)}"


# --- reading without importing ---------------------------------------------------------------------------------------


def _info(point: EntryPoint) -> RewardInfo:
    return RewardInfo(point.name, source_of(point), point.value, *describe(point))


def describe(point: EntryPoint) -> tuple[str, str]:
    """The columns and the summary of what an entry point leads to, without importing it; `?` where they are not told."""
    module, path = place_of(point.value)
    tree = _parsed(module) if module else None
    return (UNKNOWN, UNKNOWN) if tree is None else _describe(tree, path)


def _parsed(module_name: str) -> ast.Module | None:
    spec = find_module(module_name)
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
            case ast.Assign(targets=[ast.Name(id=target)]) | ast.AnnAssign(target=ast.Name(id=target)) if (
                target == name
            ):
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
