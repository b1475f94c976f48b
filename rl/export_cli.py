"""`lockstitch export`: a trained adapter with its card, or the model that it makes of its base.

For instance:

    lockstitch export --adapter runs/sudoku --output exports/sudoku-lora
    lockstitch export --adapter runs/sudoku --merge --output exports/sudoku
    lockstitch export --adapter runs/8b --merge --names published --output exports/8b
    lockstitch export --adapter runs/8b --base GSAI-ML/LLaDA-8B-Instruct --push --output exports/8b
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lockstitch.rl.export import NAMES, STAGES, ExportConfig, export

from lockstitch.errors import reported


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lockstitch export",
        description="Pack a trained LoRA adapter, or merge it into its base; checked on the spot.",
        epilog="The base is loaded in its own dtype; the adapted and the merged model are compared on fixed tokens, and so "
        "is what was written, once it is read back.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--adapter", type=Path, required=True, metavar="DIR", help="an adapter, or a run's output directory"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="a new one: there whole or not at all"
    )
    parser.add_argument("--merge", action="store_true", help="write the whole model, in the base's dtype")
    parser.add_argument("--base", help="the base, by name or path, instead of the one that the adapter names")
    parser.add_argument("--revision", help="the base's revision on the hub")
    parser.add_argument(
        "--names",
        choices=NAMES,
        default="native",
        help="names of tensors and config: transformers' own "
        "(default), or those that the family's published code reads",
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code of a base of unknown type")
    parser.add_argument("--push", action="store_true", help="upload the output to the hub as well")
    parser.add_argument(
        "--hub_model_id", metavar="OWNER/NAME", help="its name there (default: the output directory's)"
    )
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    return parser


def summary(done: Mapping[str, Any]) -> str:
    """What was done, for the terminal."""
    kind = "merged model" if done["merged"] else "adapter"
    lines = [f"{kind} of {done['base']}: {done['output']}"]
    if done["error"] is None:
        lines.append(f"it cannot be merged: {done['no_merge']}")
    else:
        lines.append(
            f"merged and adapted logits differ by {done['error']:.1e} of their norm in {done['dtype']} "
            f"(at most {done['tolerance']:g} passes)"
        )
    lines.append(f"the adapter moves the logits by {done['effect']:.1e} of their norm")
    if done["effect"] == 0:
        lines.append("Note: the adapter changes nothing; was it trained?")
    elif done["merged"] and done["error"] > done["effect"] / 2:
        lines.append(
            f"Note: merging into {done['dtype']} weights rounds away about as much as the adapter does; the "
            "adapter itself is exact (leave out --merge)."
        )
    return "\n".join([*lines, *([done["url"]] if "url" in done else [])])


@reported("lockstitch export", "interrupted; nothing was written")
def main(argv: list[str] | None = None) -> int:
    """Entry point of `lockstitch export`: 0, or 2 with the reason on the error stream."""
    options = _parser().parse_args(argv)
    config = ExportConfig(**vars(options))
    from tqdm import tqdm
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading and writing; the stages have a bar of their own

    with tqdm(total=STAGES, unit="stage", disable=None) as bar:

        def report(stage: str) -> None:
            bar.set_description(stage)
            bar.update()

        done = export(config, report)
    print(summary(done))
    return 0
