"""The documentation runs: shell blocks, Python blocks and what these print, and every relative link.

The conventions of `docs/*.md` and `README.md`: a `bash` block runs as a whole in a folder of its own, command by command,
and must succeed; a `python` block runs in a fresh interpreter, and a `text` block that follows it with only blank lines
between is what it prints; a `console` block is only shown, and the line above it says why: `<!-- not run: reason -->`.
A page that begins with `<!-- one folder -->` is a walk: its blocks run in their order, in one folder, as one test.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUN = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
LINKED = [*RUN, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "recipes" / "README.md"]
ONE_FOLDER = "<!-- one folder -->\n"
KINDS = {"bash", "python", "text", "console", "json", "yaml"}

_BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ ]*$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_NOT_RUN = re.compile(r"<!-- not run: \S.* -->")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its kind, what it holds, the line above it and the `text` block after it."""

    page: Path
    line: int
    kind: str
    body: str
    above: str
    printed: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    matches = list(_BLOCK.finditer(text))
    blocks = []
    for i, match in enumerate(matches):
        before = text[: match.start()]
        follows = i + 1 < len(matches) and not text[match.end() : matches[i + 1].start()].strip()
        printed = matches[i + 1][2] if follows and matches[i + 1][1] == "text" else None
        above = before.rstrip("\n").rpartition("\n")[2]
        blocks.append(Block(page, before.count("\n") + 1, match[1], match[2], above, printed))
    return blocks


WALKS = [page for page in RUN if page.read_text(encoding="utf-8").startswith(ONE_FOLDER)]
BLOCKS = [block for page in RUN if page not in WALKS for block in blocks_of(page)]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder, with this interpreter's environment first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=300, check=False
    )


def try_block(block: Block, folder: Path) -> None:
    """Runs a `bash` or `python` block in a folder; it must succeed, and print what the page says that it prints."""
    command = ["bash", "-euxo", "pipefail", "-c"] if block.kind == "bash" else [sys.executable, "-c"]
    done = run([*command, block.body], folder)
    assert done.returncode == 0, f"{block} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    if block.kind == "python" and block.printed is not None:
        assert done.stdout == block.printed


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_row_belongs_to_a_table(page: Path) -> None:
    """A row after a blank line is none of the table above it; it is shown as text, bars and all."""
    rule, text = re.compile(r"\|(\s*:?-+:?\s*\|)+$"), _BLOCK.sub("", page.read_text(encoding="utf-8"))
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = table.splitlines()
        assert rule.match(rows[1] if len(rows) > 1 else ""), f"{page.name}: no table begins with {rows[0]}"


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind == "bash"], ids=str)
def test_a_shell_block_succeeds(block: Block, tmp_path: Path) -> None:
    try_block(block, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind == "python"], ids=str)
def test_a_python_block_prints_what_the_page_says(block: Block, tmp_path: Path) -> None:
    try_block(block, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", WALKS, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_walk_arrives(page: Path, tmp_path: Path) -> None:
    for block in blocks_of(page):
        if block.kind in {"bash", "python"}:
            try_block(block, tmp_path)


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_what_it_is(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(re.findall("^```", text, re.MULTILINE)) == 2 * len(blocks_of(page)), f"{page} has an open fence"
    unknown = [f"{block}: {block.kind!r}" for block in blocks_of(page) if block.kind not in KINDS]
    assert not unknown, f"kinds that no test would look at ({unknown}); known: {sorted(KINDS)}"


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_block_that_is_not_run_says_why(page: Path) -> None:
    silent = [str(b) for b in blocks_of(page) if b.kind == "console" and not _NOT_RUN.fullmatch(b.above)]
    assert not silent, f"no '<!-- not run: reason -->' in the line above {silent}"


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page: Path) -> None:
    prose = re.sub(r"`[^`\n]*`", "", _BLOCK.sub("", page.read_text(encoding="utf-8")))
    targets = [link.partition("#")[0] for link in _LINK.findall(prose) if not re.match(r"[a-z]+:", link)]
    missing = [target for target in targets if target and not (page.parent / target).exists()]
    assert not missing, f"{page} links to {missing}"
