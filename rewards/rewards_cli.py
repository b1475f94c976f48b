"""`lockstitch rewards`: which rewards are installed, where they come from, which columns they read, what they pay for.

Nothing is imported, so a broken plug-in is listed all the same.

    lockstitch rewards
    lockstitch rewards --json
"""

import argparse
import dataclasses
import json
import shutil
import textwrap

from lockstitch.rewards.plugins import GROUP, RewardInfo, available_rewards

from lockstitch.errors import reported


@reported("lockstitch rewards")
def main(argv: list[str] | None = None) -> int:
    """Prints the table, or the list as JSON."""
    parser = argparse.ArgumentParser(
        prog="lockstitch rewards",
        description="List the rewards that installed packages offer, without importing them.",
        epilog=f"Packages offer rewards as entry points of the group {GROUP!r}. A function of a local file needs none: "
        "wherever a reward is named, file.py:function or package.module:function will do.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON list with name, source, target, columns, summary"
    )
    options = parser.parse_args(argv)
    rewards = available_rewards()
    if options.json:
        print(json.dumps([dataclasses.asdict(reward) for reward in rewards], indent=2))
    elif rewards:
        print(_table(rewards, shutil.get_terminal_size((120, 24)).columns))
    else:
        print(
            f"no package offers entry points of the group {GROUP!r}; lockstitch itself does when it is installed anew"
        )
    return 0


def _table(rewards: list[RewardInfo], width: int) -> str:
    """Name, source, columns and summary in columns; the last two are wrapped to the width of the terminal."""
    rows = [("name", "source", "columns", "summary")]
    rows += [(reward.name, reward.source, reward.columns or "-", reward.summary) for reward in rewards]
    name, source = (max(len(row[i]) for row in rows) for i in (0, 1))
    left = max(50, width - name - source - 6)
    columns = min(max(len(row[2]) for row in rows), left * 2 // 5)
    lines = []
    for row in rows:
        wrapped = [
            textwrap.wrap(row[i], size, break_long_words=False) for i, size in ((2, columns), (3, left - columns))
        ]
        cells = [[row[0]], [row[1]], *wrapped]
        for i in range(max(map(len, cells))):
            parts = [cell[i] if i < len(cell) else "" for cell in cells]
            widths = (name, source, columns, 0)
            lines.append("  ".join(f"{part:<{size}}" for part, size in zip(parts, widths, strict=True)).rstrip())
    return "\n".join(lines)
