"""The page on which people look at stitching results: trajectories side by side, and the thread through what was kept.

One HTML file that needs nothing else: style and script are inline, the data is JSON inside the page, and a content
security policy forbids every request. The page itself is `report.html` beside this module; what is left out here is
any drawing, which the page does in the browser, 20 problems at a time, so that thousands stay quick.

Rows and summary are the records of `results.jsonl` and `summary.json`.
"""

from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from lockstitch.pages import embed, without_places, write_page


def write_report(path: Path, rows: Iterable[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Writes the page whole or not at all.

    Args:
        path: where the page goes; an older one is replaced.
        rows: one record per problem, read once, in the order of the page.
        summary: what all problems together say: methods, absent methods, paired differences.

    Raises:
        ValueError: a number in a row or the summary is not finite.
    """

    def data() -> Iterator[str]:
        shown = {**summary, "config": without_places(summary.get("config", {}))}
        yield f'{{"summary":{embed(shown)},"rows":['
        for i, row in enumerate(rows):
            yield ("," if i else "") + "\n" + embed(row)
        yield "\n]}"

    write_page(
        path, resources.files("lockstitch.stitching").joinpath("report.html").read_text(encoding="utf-8"), data()
    )
