"""The page on which people look at stitching results: trajectories side by side, and the thread through what was kept.

One HTML file that needs nothing else: style and script are inline, the data is JSON inside the page, and a content
security policy forbids every request. The page itself is `report.html` beside this module; what is left out here is
any drawing, which the page does in the browser, 20 problems at a time, so that thousands stay quick.

Rows and summary are the records of `results.jsonl` and `summary.json`.
"""

import json
import os
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

_MARK = "@@DATA@@"


def embed(value: object) -> str:
    """JSON that may stand inside a script element: pure ASCII, and no character that markup could begin with.

    Raises:
        ValueError: a number is not finite, which JSON cannot say.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def write_report(path: Path, rows: Iterable[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Writes the page whole or not at all: to a temporary file beside `path`, which then takes its place.

    Args:
        path: where the page goes; an older one is replaced.
        rows: one record per problem, read once, in the order of the page.
        summary: what all problems together say: methods, absent methods, paired differences.

    Raises:
        ValueError: a number in a row or the summary is not finite.
    """
    page = resources.files("lockstitch.stitching").joinpath("report.html").read_text(encoding="utf-8")
    before, mark, after = page.partition(_MARK)
    assert mark, "report.html has no place for the data"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(f'{before}{{"summary":{embed(summary)},"rows":[')
            for i, row in enumerate(rows):
                file.write(("," if i else "") + "\n" + embed(row))
            file.write(f"\n]}}{after}")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
