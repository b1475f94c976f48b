"""Checks the installed wheel against the checkout that this script lies in.

    CLEAN_ENVIRONMENT/bin/python -I scripts/check_wheel.py

Every file of every package must be there, byte for byte; every module must import from there and from nowhere else;
the console script must answer. Folders' README.md files are for readers of the repository and stay out of wheels.
"""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = Path(sys.prefix).resolve()
OPTIONAL = ("reasoning_gym", "lm_eval")
# Sent to a sandbox as text, where they stand on others: none can be imported by itself.
SENT = ("program_side", "tests_side", "remote_objects", "stand_in_numpy", "stand_in_pytest")


def check_package(package: str, folder: Path) -> tuple[int, int]:
    """Imports a package and compares its files; returns how many modules and other files it has, less those of its wings."""
    init = importlib.import_module(package).__file__
    assert init is not None
    home = Path(init).resolve().parent
    if not home.is_relative_to(INSTALLED):
        raise SystemExit(f"{package} was imported from {home}, not from the wheel under {INSTALLED}")
    modules = others = 0
    wings = {init.parent for init in folder.glob("*/__init__.py")}
    for source in sorted(path for path in folder.rglob("*") if path.is_file() and wings.isdisjoint(path.parents)):
        relative = source.relative_to(folder)
        if "__pycache__" in relative.parts or relative == Path("README.md"):
            continue
        copy = home / relative
        if not copy.is_file() or copy.read_bytes() != source.read_bytes():
            raise SystemExit(f"{package}: {relative} is missing from the wheel or differs")
        if source.suffix != ".py":
            others += 1
            continue
        modules += 1
        if source.stem not in ("__init__", "__main__", *SENT):
            try:
                file = importlib.import_module(f"{package}.{source.stem}").__file__
            except ModuleNotFoundError as error:
                if error.name not in OPTIONAL:  # what only an extra brings need not be there
                    raise
                continue
            assert file is not None
            assert Path(file).resolve() == copy, file
    return modules, others


def main() -> None:
    """Runs the checks; a failure ends the process with a message and status 1."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for package, folder in pyproject["tool"]["setuptools"]["package-dir"].items():
        modules, others = check_package(package, ROOT / folder)
        print(f"{package}: {modules} modules, {others} other files")
    script = Path(sys.prefix) / "bin" / "lockstitch"
    subprocess.run([script, "--help"], check=True, stdout=subprocess.DEVNULL)
    version = subprocess.run([script, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    if version != f"lockstitch {pyproject['project']['version']}":
        raise SystemExit(f"`lockstitch --version` says {version!r}")
    print(version)


if __name__ == "__main__":
    main()
