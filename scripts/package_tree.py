"""Spells out the mapping of folders to packages in pyproject.toml as a tree of links, for tools that do not follow it.

`python scripts/package_tree.py DIR` makes DIR anew, and prints the rooms' folders, a line each.
"""

import shutil
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def make_tree(tree: Path) -> list[str]:
    """Makes `tree` anew, with a folder for each package and links to its files; gives the rooms' folders."""
    mapping = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-dir"]
    shutil.rmtree(tree, ignore_errors=True)
    for package, folder in mapping.items():
        place = tree.joinpath(*package.split("."))
        place.mkdir(parents=True, exist_ok=True)
        for source in (path for path in (ROOT / folder).iterdir() if path.is_file()):
            (place / source.name).symlink_to(source)
    return [folder for package, folder in mapping.items() if package.count(".") == 1]


if __name__ == "__main__":
    print("\n".join(make_tree(Path(sys.argv[1]))))
