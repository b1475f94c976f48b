"""What MkDocs asks while it builds the site of mkdocs.yml: which files there are, and where a link to a folder leads.

Pages keep their paths in the repository, so relative links lead to the same files here and there. What only the site has:
a page for each folder of settings or examples, which shows its files, and a page for each package, made from its docstrings.
"""

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from package_tree import make_tree  # noqa: E402

PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "recipes/README.md"]
SHOWN = {"examples": "*.py", "recipes/accelerate": "*.yaml", "recipes/configs": "*.yaml", "recipes/presets": "*.yaml"}
LANGUAGES = {".py": "python", ".yaml": "yaml"}
COMMANDS = re.compile(r"(^|_)(cli|worker|watch|terminal|__main__)$")  # modules that are run, not called

_LINK = re.compile(r"(\]\()([^)\s#:]+)(\))")

# Before griffe is told where to look: a folder that is not there it passes over.
make_tree(ROOT / "build" / "docs-tree")


def on_config(config: Any) -> Any:
    """Puts the API's pages into the navigation."""
    for entry in config.nav:
        if "API" in entry:
            entry["API"] = [{title: path} for path, title, _ in _api()]
    return config


def on_files(files: Files, config: Any) -> Files:
    """The repository's pages under their paths there, in the place of what lies below `docs_dir`."""
    theirs = [file for file in files if file.src_dir != config.docs_dir]
    ours = [*sorted((ROOT / "docs").rglob("*.*")), *(ROOT / page for page in PAGES)]
    ours += [path for folder, pattern in SHOWN.items() for path in sorted((ROOT / folder).rglob(pattern))]
    made = [File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)) for path in ours]
    made += [File.generated(config, f"{folder}/index.md", content=text) for folder, text in _shown()]
    made += [File.generated(config, path, content=text) for path, _, text in _api()]
    return Files([*theirs, *made])


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A link to a folder leads to the page that the site has for it."""
    here = (ROOT / page.file.src_uri).parent

    def to_page(match: re.Match[str]) -> str:
        is_folder = (here / match[2]).is_dir()
        return f"{match[1]}{match[2].rstrip('/')}/index.md{match[3]}" if is_folder else match[0]

    return _LINK.sub(to_page, markdown)


def _shown() -> list[tuple[str, str]]:
    """The folders whose files are shown, at any depth, by their paths in the repository, and the text of their pages."""
    pages = {}
    for top, pattern in SHOWN.items():
        for folder in {ROOT / top, *(path.parent for path in (ROOT / top).rglob(pattern))}:
            name = str(folder.relative_to(ROOT))
            below = sorted(path.name for path in folder.iterdir() if path.is_dir() and any(path.glob(pattern)))
            links = "".join(f"- [{one}]({one}/index.md)\n" for one in below)
            pages[name] = f"# {name}\n\n{links}" + "".join(_show(path) for path in sorted(folder.glob(pattern)))
    return sorted(pages.items())


def _show(path: Path) -> str:
    return f"\n## {path.name}\n\n```{LANGUAGES[path.suffix]}\n{path.read_text(encoding='utf-8').rstrip()}\n```\n"


def _api() -> list[tuple[str, str, str]]:
    """A page for each package: its path, its title, its text."""
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-dir"]
    pages = []
    for package, folder in folders.items():
        stems = sorted(path.stem for path in (ROOT / folder).glob("*.py"))
        modules = [f"{package}.{stem}" for stem in stems if stem != "__init__" and not COMMANDS.search(stem)]
        says = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8")))
        text = "".join(f"::: {name}\n\n" for name in [*([package] if says else []), *modules])
        pages.append((f"api/{package}.md", package, f"# {package}\n\n{text}"))
    return pages
