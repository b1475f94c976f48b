"""The tables of stitching on the pages: each is read back as it was written, and what is summed up is what they say."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from stitching_tables import NO_SOLVER, PAGES, Table, curves, markdown, read_tables, tables_of, wins

ROOT = Path(__file__).parent.parent
TABLES = read_tables(PAGES)


def outcome(accuracy, waits, passes):
    return {"accuracy": accuracy, "sequential_steps": waits, "passes": passes}


def summary(stitched, alone, loop, *, solver=False):
    """What the bench writes for one N."""
    methods = {"remask_loop": outcome(loop, 9.6, 9.6), "stitched": outcome(stitched, 8.2, 10.4)}
    pair = {"difference": alone - loop, "standard_error": 0.0123}
    return {
        "methods": {**methods, **({"solver_alone": outcome(0.5, 0, 4)} if solver else {})},
        "paired": {f"{NO_SOLVER} - remask_loop": pair},
        NO_SOLVER: {"accuracy": alone},
    }


@pytest.mark.parametrize("key", TABLES, ids=lambda key: "/".join(map(str, key)))
def test_a_table_of_a_page_is_written_as_it_was_read(key):
    text = markdown(key, TABLES[key])
    assert sum(text in page.read_text(encoding="utf-8") for page in PAGES) == 1


def test_where_stitching_wins_is_what_the_tables_say():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert wins(TABLES) in page


def test_without_a_solver_the_answer_of_the_evidence_counts():
    keys = {
        "sudoku-early/prm:judge/4/8": summary(0.1, 0.625, 0.5),
        "sudoku-early/prm:judge/4/4": summary(0.1, 0.5, 0.5),
    }
    ((key, table),) = tables_of(keys).items()
    assert key == ("sudoku-early", "prm:judge", 4)
    assert "| stitched | 50.0 (8, 10) | 62.5 (8, 10) |  |\n" in markdown(key, table)
    assert "| remask loop | 50.0 (10, 10) | 50.0 (10, 10) | +12.5 ± 1.2 |\n" in markdown(key, table)
    ((key, table),) = tables_of({"a/exact/4/8": summary(0.75, 0.625, 0.5, solver=True)}).items()
    assert "| stitched | 75.0 (8, 10) |  |\n" in markdown(key, table)
    assert "| stitched, no solver | 62.5 (8, 10) |  |\n" in markdown(key, table)


def test_a_table_that_cannot_be_read_is_named(tmp_path):
    page = tmp_path / "page.md"
    good = markdown(("a", "exact", 4), Table({"greedy": {4: (50.0, 5, 5)}}))
    for text, says in (
        (good + "\n" + good, "the table a/exact/4 is there twice"),
        (good.replace("greedy", "greediest"), "'greediest' is no method"),
        (good.replace("50.0 (5, 5)", "half"), "greedy, N = 4: 'half' is no accuracy"),
        (good.replace("|  |\n", "| more |\n"), "greedy: 'more' is no difference"),
    ):
        page.write_text(text)
        with pytest.raises(ValueError, match=re.escape(says)):
            read_tables([page])
    page.write_text("Text.\n\n" + good + "\nMore.\n")
    assert markdown(("a", "exact", 4), read_tables([page])["a", "exact", 4]) == good


def test_a_curve_rises_and_leaves_out_what_cheaper_ones_reach():
    cells = {"greedy": {4: (50.0, 5, 5), 8: (40.0, 9, 9), 16: (60.0, 12, 90)}}
    found = curves({("a", "exact", 4): Table(cells), ("a", "exact", 2): Table({"greedy": {4: (55.0, 9, 9)}})}, 1)
    assert found == {("a", "exact"): {"greedy": [(5, 50.0), (9, 55.0), (12, 60.0)]}}
