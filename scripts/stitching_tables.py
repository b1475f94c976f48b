"""The tables of stitching: written as Markdown, drawn over both costs, and read back from the pages that they stand on.

    python scripts/stitching_tables.py --images docs/images     # draws each scorer's (needs matplotlib)
    python scripts/stitching_tables.py --wins                   # prints where stitching wins, ties and loses

A table is of one model, scorer and number of tokens a denoising step. `bench_stitching.py` prints it below a comment,
`<!-- table: sudoku-early/exact/4 -->`, by which it is found again on a page. A cell is the accuracy in percent and, in
brackets, the passes that wait for one another and all passes.
"""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lockstitch.stitching.method_names import METHODS

PAGES = [Path(__file__).parent.parent / "docs" / name for name in ("results.md", "stitching-tables.md")]
AXES = {1: "passes in sequence", 2: "all passes"}  # by their place in a cell
SPENT = (5, 10, 20, 40, 80, 160, 320, 640, 1280)
NO_SOLVER = "stitched, no solver"
SCORERS = {
    "exact": "exact",
    "prm": "reward model",
    "bmc": "BMC",
    "confidence": "confidence",
    "likelihood": "likelihood",
}
MODELS = ("sudoku-early", "countdown", "arithmetic")
RIVALS = (
    "weighted_vote",
    "best_of_n",
    "best_of_n_refine",
    "remask_loop",
    "guided_remask",
    "value_guided_reveal",
    "vgb_momentum",
    "stitched_wide",
)
_MARK = re.compile(r"<!-- table: (\S+) -->\n\n?((?:\|.*\n)+)")
_CELL = re.compile(r"([\d.]+) \((\d+), (\d+)\)")
_DIFFERENCE = re.compile(r"([+-][\d.]+) ± ([\d.]+)")

Key = tuple[str, str, int]


@dataclass
class Table:
    """Of one model, scorer and number of tokens a step.

    Attributes:
        cells: by method and N: accuracy in percent, passes in sequence, all passes.
        minus: by method and N: stitched minus that method in points, and the standard error of it; a page has the largest N.
    """

    cells: dict[str, dict[int, tuple[float, float, float]]] = field(default_factory=dict)
    minus: dict[str, dict[int, tuple[float, float]]] = field(default_factory=dict)

    @property
    def sizes(self) -> list[int]:
        """All N, rising."""
        return sorted({n for of in self.cells.values() for n in of})


def tables_of(summaries: Mapping[str, Mapping]) -> dict[Key, Table]:
    """Of what `bench_stitching.py` writes as stitching.json. Without a solver `stitched` is what stands in the evidence."""
    found: dict[Key, Table] = {}
    for key, summary in summaries.items():
        model, scorer, tokens, n = key.rsplit("/", 3)
        table = found.setdefault((model, scorer, int(tokens)), Table())
        alone = 100 * summary[NO_SOLVER]["accuracy"]
        for name, one in summary["methods"].items():
            costs = (one["sequential_steps"], one["passes"])
            accuracy = 100 * one["accuracy"]
            if name == "stitched" and "solver_alone" in summary["methods"]:
                table.cells.setdefault(NO_SOLVER, {})[int(n)] = (alone, *costs)
            elif name == "stitched":
                accuracy = alone
            table.cells.setdefault(name, {})[int(n)] = (accuracy, *costs)
            if (pair := summary["paired"].get(f"{NO_SOLVER} - {name}")) is not None:
                difference, error = (100 * pair[of] for of in ("difference", "standard_error"))
                table.minus.setdefault(name, {})[int(n)] = (difference, error)
    return found


def read_tables(pages: list[Path]) -> dict[Key, Table]:
    """The tables of some pages. Raises `ValueError` for a table that cannot be read, or that stands there twice."""
    found: dict[Key, Table] = {}
    for page in pages:
        for mark, body in _MARK.findall(page.read_text(encoding="utf-8")):
            model, scorer, tokens = mark.rsplit("/", 2)
            key = (model, scorer, int(tokens))
            if key in found:
                raise ValueError(f"{page.name}: the table {mark} is there twice")
            found[key] = _read(body, f"{page.name}, {mark}")
    return found


def _read(body: str, where: str) -> Table:
    head, _, *lines = ([cell.strip() for cell in line.strip("|\n").split("|")] for line in body.splitlines())
    sizes = [int(cell.removeprefix("N = ")) for cell in head[1:] if cell.startswith("N = ")]
    table = Table()
    for name, *cells in lines:
        method = name.replace(" ", "_")
        if method not in METHODS or len(cells) != len(sizes) + 1:
            raise ValueError(f"{where}: {name!r} is no method, or its row is not as long as the head")
        for n, cell in zip(sizes, cells, strict=False):
            read = _CELL.fullmatch(cell)
            if read is None:
                raise ValueError(f"{where}, {name}, N = {n}: {cell!r} is no accuracy with two costs")
            table.cells.setdefault(method, {})[n] = tuple(map(float, read.groups()))
        if cells[-1]:
            read = _DIFFERENCE.fullmatch(cells[-1])
            if read is None:
                raise ValueError(f"{where}, {name}: {cells[-1]!r} is no difference with its standard error")
            difference, error = map(float, read.groups())
            table.minus.setdefault(method, {})[sizes[-1]] = (difference, error)
    return table


def difference_of(pair: tuple[float, float] | None, *, bold: bool = False) -> str:
    """A difference with its standard error, or nothing; bold, if asked for, where as rounded it is beyond two."""
    if pair is None:
        return ""
    text = f"{pair[0]:+.1f} ± {pair[1]:.1f}"
    return f"**{text}**" if bold and abs(pair[0]) > 2 * pair[1] else text


def markdown(key: Key, table: Table) -> str:
    """The table as it stands on a page."""
    sizes = table.sizes
    lines = [
        f"<!-- table: {'/'.join(map(str, key))} -->\n",
        f"| method | {' | '.join(f'N = {n}' for n in sizes)} | stitched minus it, N = {sizes[-1]} |",
        "|---" * (len(sizes) + 2) + "|",
    ]
    for name in (*METHODS, NO_SOLVER):
        if name in table.cells:
            cells = [f"{y:.1f} ({waits:.0f}, {passes:.0f})" for y, waits, passes in map(table.cells[name].get, sizes)]
            last = difference_of(table.minus.get(name, {}).get(sizes[-1]))
            lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} | {last} |")
    return "\n".join(lines) + "\n"


def print_tables(tables: Mapping[Key, Table]) -> None:
    """Each table, and after it the paired differences for every N."""
    for key, table in tables.items():
        print(f"\n{markdown(key, table)}")
        for n in table.sizes:
            of = {name: table.minus[name].get(n) for name in RIVALS if name in table.minus}
            said = ", ".join(f"{name.replace('_', ' ')} {difference_of(pair)}" for name, pair in of.items())
            print(f"Stitched minus the others, N = {n}: {said}")


def wins(tables: Mapping[Key, Table]) -> str:
    """Where stitching wins, ties and loses at the largest N: a row a table. Tables of other scorers and models come last."""
    lines = [
        f"| scorer | task | tokens a step | stitched | {' | '.join(name.replace('_', ' ') for name in RIVALS)} |",
        "|---" * (len(RIVALS) + 4) + "|",
    ]
    for (model, scorer, tokens), table in sorted(tables.items(), key=lambda one: _place(one[0])):
        n = table.sizes[-1]
        cells = [difference_of(table.minus.get(name, {}).get(n), bold=True) for name in RIVALS]
        accuracy = table.cells["stitched"][n][0]
        lines.append(f"| {SCORERS.get(scorer, scorer)} | {model} | {tokens} | {accuracy:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _place(key: Key) -> tuple[int, int, int]:
    model, scorer, tokens = key
    known = [*SCORERS, scorer], [*MODELS, model]
    return known[0].index(scorer), known[1].index(model), -tokens


def curves(tables: Mapping[Key, Table], axis: int) -> dict[tuple[str, str], dict[str, list[tuple[float, float]]]]:
    """By model and scorer, by method: (passes on the axis, accuracy), rising, each better than all cheaper ones."""
    points: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for (model, scorer, _), table in tables.items():
        for name, of in table.cells.items():
            points.setdefault((model, scorer), {}).setdefault(name, []).extend(
                (cell[axis], cell[0]) for cell in of.values()
            )
    return {
        key: {
            name: [
                (x, y) for i, (x, y) in enumerate(sorted(found)) if all(y > other for _, other in sorted(found)[:i])
            ]
            for name, found in of.items()
        }
        for key, of in points.items()
    }


def print_curves(tables: Mapping[Key, Table]) -> None:
    """For each axis, the best accuracy of every method within so many passes."""
    for axis, label in AXES.items():
        print(f"\nBest accuracy within so many {label}, over N and tokens a step:\n")
        print("| model | scorer | method | " + " | ".join(map(str, SPENT)) + " |")
        print("|---|---|---|" + "---|" * len(SPENT))
        for (model, scorer), of in curves(tables, axis).items():
            for name, points in of.items():
                best = [max((y for x, y in points if x <= spent), default=None) for spent in SPENT]
                cells = ["" if one is None else f"{one:.1f}" for one in best]
                print(f"| {model} | {scorer} | {name.replace('_', ' ')} | " + " | ".join(cells) + " |")


def draw(tables: Mapping[Key, Table], file: Path) -> None:
    """Accuracy over passes: a row of panels for each axis, a panel for each model and scorer, a line a method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    keys = list(curves(tables, 1))
    figure, panels = plt.subplots(
        len(AXES), len(keys), figsize=(1.6 + 3.6 * len(keys), 6.4), layout="constrained", squeeze=False, sharey="col"
    )
    lines = {}
    for row, (axis, label) in zip(panels, AXES.items(), strict=True):
        for axes, (key, of) in zip(row, curves(tables, axis).items(), strict=True):
            for name, points in of.items():
                i = (*METHODS, NO_SOLVER).index(name)
                style = {
                    "color": "black" if name == "stitched" else plt.cm.tab20(i),
                    "marker": "os^vDP"[i % 6],
                    "linewidth": 2.2 if name == "stitched" else 1,
                }
                xs, ys = zip(*points, strict=True)
                (lines[name],) = axes.plot(xs, ys, drawstyle="steps-post", markersize=4, **style)
            axes.set(xlabel=label, xscale="log", title=f"{key[0]}, {SCORERS.get(key[1], key[1])}")
            low, high = axes.get_xlim()
            axes.set_xticks([spent for spent in SPENT if low <= spent <= high], minor=False)
            axes.minorticks_off()
            axes.xaxis.set_major_formatter("{x:.0f}")
        row[0].set_ylabel("accuracy, %")
    shown = [name for name in (*METHODS, NO_SOLVER) if name in lines]
    names = [name.replace("_", " ") for name in shown]
    figure.legend([lines[name] for name in shown], names, loc="outside right", frameon=False, fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    """Draws the tables of the pages, or prints where stitching wins."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", nargs="+", type=Path, default=PAGES)
    parser.add_argument("--images", type=Path, help="draw the tables of scorers with several numbers of tokens a step")
    parser.add_argument("--wins", action="store_true", help="print where stitching wins, ties and loses")
    arguments = parser.parse_args()
    if not arguments.wins and arguments.images is None:
        parser.error("nothing to do: --wins, --images DIRECTORY, or both")
    try:
        tables = read_tables(arguments.pages)
    except (OSError, ValueError) as error:
        parser.error(f"--pages: {error}")
    if arguments.images is not None and not tables:
        parser.error("--images: the pages have no table")
    if arguments.wins:
        print(wins(tables), end="")
    if arguments.images is not None:
        for scorer in dict.fromkeys(key[1] for key in tables):
            own = {key: table for key, table in tables.items() if key[1] == scorer}
            if len({tokens for *_, tokens in own}) > 1:
                ordered = dict(sorted(own.items(), key=lambda one: _place(one[0])))
                draw(ordered, arguments.images / f"arms-{scorer}.png")


if __name__ == "__main__":
    main()
