"""Pages that people look at: one HTML file each, which needs nothing else.

A page is a template whose style and script are inline, and data as JSON inside it; what to draw is the template's own
affair, in the browser. Data is written as it comes, so a page of many rows is never in memory at once.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_MARK = "@@DATA@@"
# `/a/b`, `~/a`, `C:\\a`, each maybe after `vllm:` and the like; but neither `/no_think` nor an address.
_PLACE = re.compile(r"((?:[a-z_]+:)?)(?:/(?!/)[^\n]*/|~/(?:[^\n]*/)?|[A-Za-z]:[\\/](?:[^\n]*[\\/])?)([^/\\\n]+)[/\\]?")

_SUM = re.compile(r" \([0-9a-f]{16}\)$")  # of a file of one's own, as runs remember it behind its place


def without_places(value: Any) -> Any:
    """A setting as a page or a card shows it: of an absolute path the last part, for the folders of a machine say nothing.

    Also inside lists and mappings. A text with spaces is a path only if it is one of this machine.
    """
    if isinstance(value, Mapping):
        return {name: without_places(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(inner) for inner in value]
    if not isinstance(value, str | Path):
        return value
    text = str(value)
    place = _SUM.sub("", text)
    found = _PLACE.fullmatch(place)
    if found is None or (re.search(r"\s", place) and not os.path.lexists(place.removeprefix(found[1]))):
        return text
    return found[1] + found[2] + text[len(place) :]


def embed(value: object) -> str:
    """JSON that may stand inside a script element: pure ASCII, and no character that markup could begin with.

    Raises:
        ValueError: a number is not finite, which JSON cannot say.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def write_page(path: Path, template: str, data: Iterable[str]) -> None:
    """Writes a page whole or not at all: to a temporary file beside `path`, which then takes its place.

    Args:
        path: where the page goes; an older one is replaced.
        template: the page, with `@@DATA@@` where the data goes.
        data: pieces of one JSON text, each made by `embed` or free of markup otherwise.
    """
    before, mark, after = template.partition(_MARK)
    assert mark, "the template has no place for the data"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(before)
            file.writelines(data)
            file.write(after)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
