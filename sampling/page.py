"""The page on which people look at traces: a canvas, step by step, with every token's confidence and history.

One HTML file that needs nothing else: style and script are inline, the data is JSON inside the page, and a content
security policy forbids every request. The page itself is `trace.html` beside this module; what is left out here is any
drawing, which the page does in the browser, one trajectory at a time.

The page is a picture, not the record: confidences and entropies are rounded to four digits.
"""

from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from lockstitch.sampling.prompts import read_result_row
from lockstitch.sampling.replay import token_ids, token_text, whole_characters
from transformers import PreTrainedTokenizerBase as Tokenizer

from lockstitch.pages import embed, without_places, write_page

_DIGITS = 4


def write_trace(
    path: Path, rows: Iterable[Mapping[str, Any]], config: Mapping[str, Any], tokenizer: Tokenizer
) -> None:
    """Writes the page whole or not at all.

    Args:
        path: where the page goes; an older one is replaced.
        rows: lines of `results.jsonl`, read once, in the order of the page.
        config: what was sampled and how, shown at the top.
        tokenizer: knows the tokens' texts.

    Raises:
        ValueError: a number in a row is not finite.
    """

    def data() -> Iterator[str]:
        text_of: dict[int, str] = {}
        runs: dict[str, str] = {}  # tokens that make a whole character together, and the text of it
        yield f'{{"config":{embed(without_places(config))},"eos":{embed(tokenizer.eos_token_id)},"rows":['
        for i, row in enumerate(rows):
            for trajectory in read_result_row(row):
                for token in token_ids(trajectory) - text_of.keys():
                    text_of[token] = token_text(tokenizer, token)
                tokens = trajectory.canvas_ids
                for start, stop, whole in whole_characters(tokenizer, tokens, [text_of[token] for token in tokens]):
                    runs[",".join(map(str, tokens[start:stop]))] = whole
            yield ("," if i else "") + "\n" + embed({**row, "trajectories": [*map(_drawn, row["trajectories"])]})
        texts = {str(token): text_of[token] for token in sorted(text_of)}
        yield f'\n],"tokens":{embed(texts)},"runs":{embed(runs)}}}'

    write_page(path, resources.files("lockstitch.sampling").joinpath("trace.html").read_text(encoding="utf-8"), data())


def _drawn(trajectory: Mapping[str, Any]) -> dict[str, Any]:
    """What the page draws of a trajectory, and its text to search in: all of it but the prompt's tokens."""
    rounded = {name: [round(value, _DIGITS) for value in trajectory[name]] for name in ("confidence", "entropy")}
    kept = {name: value for name, value in trajectory.items() if name != "prompt_ids"}
    return {**kept, **rounded, "seed": str(trajectory["seed"])}  # 63 bits are more than a browser's numbers hold
