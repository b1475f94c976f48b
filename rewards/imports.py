"""A Python object at the place that a user names: `package.module:attribute`, or `path/to/file.py:attribute`.

A module of that name is looked for beside the user first, in the working directory or where the file lies that names it,
and then where Python looks. Nothing else of that directory is imported in the place of a library: while a user's module is
run its directory stands last on the path, so that it finds what lies beside it, and what is installed goes first. A user's
file that bears an installed module's name is run under a name of its own, and the library stays what it is.
"""

import difflib
import importlib
import importlib.util
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from lockstitch.errors import OthersCodeError, others_code


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the known words that are like this one; empty if none is."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def is_place(spec: str) -> bool:
    """Whether a text has the form `module:attribute` or `file.py:attribute`."""
    module, colon, path = spec.partition(":")
    if not (module.strip() and colon and path.strip()):
        return False
    return module.endswith(".py") or all(part.isidentifier() for part in module.strip().split("."))


def load_named(kind: str, spec: str, beside: Path | None = None) -> Any:
    """What stands at `package.module:attribute` or `path/to/file.py:attribute`.

    Args:
        kind: what it is to be, for messages: `reward`, `task`, `scorer`.
        spec: the place.
        beside: the directory that is looked in first, and from which paths start; the working directory by default.

    Raises:
        ValueError: there is no such file, module or attribute, or the file is no Python.
    """
    module, _, path = (part.strip() for part in spec.partition(":"))
    where = Path.cwd() if beside is None else beside
    if module.endswith(".py"):
        if not path:
            raise ValueError(f"{kind} {spec!r} names nothing in the file: {module}:NAME")
        file = where / module
        if not file.is_file():
            raise ValueError(f"{kind} {spec!r}: {str(file if beside else module)!r} is not a file")
        return _attribute(kind, spec, _run(kind, spec, file, _own_name(file)), module, path)
    if not is_place(spec):
        raise ValueError(f"{kind} {spec!r} is neither package.module:name nor path/to/file.py:name")
    return _attribute(kind, spec, _beside(kind, spec, module, where), module, path)


def file_of(spec: str, beside: Path | None = None) -> Path | None:
    """The file of one's own that a place leads to, where `load_named` looks first; None for what is installed, and a name.

    The place may also be `package.module.attribute`, as `load_reward` takes it.
    """
    module, colon, _ = (part.strip() for part in spec.partition(":"))
    if not colon and not module.endswith(".py"):
        module = module.rpartition(".")[0]
    if not module:
        return None
    where = Path() if beside is None else beside
    stem = where.joinpath(*module.split("."))
    files = [where / module] if module.endswith(".py") else [stem.with_name(f"{stem.name}.py"), stem / "__init__.py"]
    return next((file for file in files if file.is_file()), None)


def load_installed(kind: str, spec: str, module: str, path: str) -> Any:
    """What an installed package has at a place; `ValueError` as `load_named`."""
    return _attribute(kind, spec, _imported(kind, spec, module, ""), module, path)


def find_module(name: str) -> ModuleSpec | None:
    """What `importlib.util.find_spec` finds, without importing the parent packages on the way."""
    path: list[str] | None = None
    spec: ModuleSpec | None = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        part = ".".join(parts[:depth])
        specs = (finder.find_spec(part, path) for finder in sys.meta_path)
        spec = next((found for found in specs if found is not None), None)
        if spec is None or (depth < len(parts) and spec.submodule_search_locations is None):
            return None
        path = list(spec.submodule_search_locations or [])
    return spec


def _beside(kind: str, spec: str, name: str, where: Path) -> ModuleType:
    file, package = where / f"{name}.py", where / name.partition(".")[0]
    if "." not in name and file.is_file():
        known = sys.modules.get(name)
        if known is not None and known.__file__ is not None and Path(known.__file__).resolve() == file.resolve():
            return known
        return _run(kind, spec, file, _own_name(file) if known is not None or _is_elsewhere(name, file) else name)
    if package.is_dir():
        with _last_on_path(where):
            return _imported(kind, spec, name, f" (looked in {where} first)")
    return _imported(kind, spec, name, f" (looked in {where} first)")


def _is_elsewhere(name: str, file: Path) -> bool:
    found = find_module(name)
    return found is not None and (found.origin is None or Path(found.origin).resolve() != file.resolve())


def _imported(kind: str, spec: str, name: str, looked: str) -> ModuleType:
    try:
        with others_code(f"{kind} {spec!r}: the module {name!r}"):
            return importlib.import_module(name)
    except OthersCodeError as error:
        missing = error.__cause__.name if isinstance(error.__cause__, ModuleNotFoundError) else None
        # An import that fails inside the module is the module's own affair.
        if missing is None or not f"{name}.".startswith(f"{missing}."):
            raise
        raise ValueError(f"{kind} {spec!r}: there is no module {missing!r}{looked}") from error
    raise AssertionError("others_code raises what it stops")


def _own_name(file: Path) -> str:
    return f"lockstitch_file_{zlib.crc32(str(file.resolve()).encode()):x}"


def _run(kind: str, spec: str, file: Path, name: str) -> ModuleType:
    """A file as a module of that name, run once."""
    if name in sys.modules:
        return sys.modules[name]
    place = importlib.util.spec_from_file_location(name, file)
    assert place is not None
    assert place.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(place)
    try:
        with _last_on_path(file.resolve().parent), others_code(f"{kind} {spec!r}: {file}"):
            place.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(cause := error.__cause__, SyntaxError) and cause.filename == str(file):
            raise ValueError(f"{kind} {spec!r}: {file} is no Python, line {cause.lineno}: {cause.msg}") from error
        raise
    return module


@contextmanager
def _last_on_path(directory: Path) -> Iterator[None]:
    here = str(directory)
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.reverse()  # the last of equals is ours
        sys.path.remove(here)
        sys.path.reverse()


def _attribute(kind: str, spec: str, found: Any, module: str, path: str) -> Any:
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            offered = [key for key in dir(found) if not key.startswith("_")]
            raise ValueError(f"{kind} {spec!r}: {module} has no {path!r}{nearest(name, offered)}") from error
    return found
