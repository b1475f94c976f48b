"""What is asked of the sampler, row by row, and what came of it: `lockstitch sample` between its files and the loop.

Rows are read, encoded and checked before any model is loaded. A row is a prompt, which may hold blanks (`blanks.py`), or a
prompt with a canvas of its own: a list of token ids, null where a position is open. A row with blanks or a canvas has a
canvas length of its own; the others take the one that was set.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lockstitch.sampling import blanks
from lockstitch.sampling.canvases import Look
from lockstitch.sampling.chat import Chat, Messages
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.families import BIDIRECTIONAL, Family
from lockstitch.sampling.layouts import in_blocks_of
from lockstitch.sampling.loop import sample
from lockstitch.sampling.noise import derive_seed
from lockstitch.sampling.trajectory import Trajectory
from lockstitch.sampling.uniform_config import UniformConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from lockstitch.files import kept_columns, read_rows

Decode = Callable[[Sequence[Sequence[int]]], list[str]]


@dataclass(frozen=True)
class Request:
    """One row of the input.

    Attributes:
        text: the prompt as it was given, blanks and all.
        prompt_ids: tokens before the canvas.
        config: the settings, with this row's canvas length.
        canvas: the row's own canvas, or None for an empty one.
        spans: its blanks.
        columns: the row's other columns, which its results keep.
    """

    text: str
    prompt_ids: tuple[int, ...]
    config: SamplerConfig | UniformConfig
    canvas: tuple[int | None, ...] | None = None
    spans: tuple[blanks.Span, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)

    def of_row(self, row: Mapping[str, Any]) -> "Request":
        """The same request with the columns of its row."""
        return replace(self, columns={name: value for name, value in row.items() if name not in ("prompt", "canvas")})


@dataclass(frozen=True)
class Reader:
    """Makes requests of rows.

    Attributes:
        tokenizer: the model's.
        settings: values of `SamplerConfig` that were set, `canvas_length` or not.
        family: the model's, whose block length is taken where the settings say none.
        chat: how prompts without blanks and canvases are put to the model.
    """

    tokenizer: Tokenizer
    settings: Mapping[str, Any]
    family: Family = BIDIRECTIONAL
    chat: Chat = field(default_factory=Chat)

    def read(self, path: Path) -> list[Request]:
        """The requests of a file; `ValueError` names every bad line."""
        return read_rows(path, lambda row: self.request(row.get("prompt"), row.get("canvas")).of_row(row))

    def request(self, text: object, canvas: object = None) -> Request:
        """One request; `ValueError` says what is wrong with it."""
        if isinstance(text, list) and text and all(isinstance(message, dict) for message in text):
            if canvas is not None:
                raise ValueError("a prompt of messages has no canvas of its own: 'canvas' goes with a text")
            return self._chatted(text)
        if not isinstance(text, str) or not text:
            raise ValueError(f"'prompt' must be a non-empty text or messages, not {text!r}")
        parts = blanks.parse(text)
        spans: tuple[blanks.Span, ...] = ()
        prompt = text
        own: tuple[int | None, ...] | None = None
        if any(isinstance(part, blanks.Blank) for part in parts):
            if canvas is not None:
                raise ValueError("'canvas' would be ignored: the prompt has blanks")
            cloze = blanks.lay_out(parts, self._encode)
            prompt, own, spans = cloze.prompt, cloze.canvas, cloze.spans
            self._check_verbatim(cloze, "".join(part for part in parts[1:] if isinstance(part, str)))
        else:
            (prompt,) = (part for part in parts if isinstance(part, str))
            own = None if canvas is None else self._canvas(canvas)
            if own is None and self.chat.template:
                return self._chatted(prompt)
        prompt_ids = tuple(self._encode(prompt))
        if not prompt_ids:
            raise ValueError(f"prompt {prompt!r} has no tokens")
        return Request(text, prompt_ids, self._config(own), own, spans)

    def asked(self, row: Mapping[str, Any]) -> Request:
        """The request of a task's row, whose prompt is a text as it is: brackets in it are no blanks."""
        prompt: str = row["prompt"]
        prompt_ids = tuple(self.chat.encode(prompt, self.tokenizer))
        if not prompt_ids:
            raise ValueError(f"prompt {prompt!r} has no tokens")
        canvas = blanks.given(prompt, self._encode)
        if canvas is None:
            return Request(prompt, prompt_ids, self._config(None)).of_row(row)
        said = self.settings.get("canvas_length")
        if said != len(canvas):
            raise ValueError(f"canvas_length={said}: the completion is known to have {len(canvas)} positions")
        config = self._config(None)
        if config.length != "fixed":
            raise ValueError(f"length={config.length!r} moves the positions of what is given; fixed does not")
        return Request(prompt, prompt_ids, config, canvas).of_row(row)

    def _chatted(self, prompt: str | Messages) -> Request:
        shown = prompt if isinstance(prompt, str) else "\n".join(str(message.get("content", "")) for message in prompt)
        return Request(shown, tuple(self.chat.encode(prompt, self.tokenizer)), self._config(None))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _config(self, own: Sequence[int | None] | None) -> SamplerConfig:
        length = self.settings.get("canvas_length")
        if own is None:
            if length is None:
                raise ValueError("canvas_length is needed, for the prompt has neither blanks nor a canvas")
            return in_blocks_of(SamplerConfig(**self.settings), self.family)
        if length is not None:
            raise ValueError(f"canvas_length={length} would be ignored: the row's own canvas has {len(own)} positions")
        config = SamplerConfig(**{**self.settings, "canvas_length": len(own)})
        if config.length != "fixed":
            raise ValueError(f"length={config.length!r} moves the positions of the row's own canvas; fixed does not")
        return in_blocks_of(config, self.family)

    def _canvas(self, canvas: object) -> tuple[int | None, ...]:
        if not isinstance(canvas, list) or not canvas:
            raise ValueError("'canvas' must be a non-empty list of token ids, null where a position is open")
        for position, token in enumerate(canvas):
            if token is not None and (type(token) is not int or not 0 <= token < len(self.tokenizer)):
                raise ValueError(
                    f"'canvas' holds {token!r} at position {position}: a token id below "
                    f"{len(self.tokenizer)} or null is needed"
                )
        return self._without_mask(canvas)

    def _without_mask(self, canvas: Sequence[int | None]) -> tuple[int | None, ...]:
        mask = self.tokenizer.mask_token_id
        if mask is not None and mask in canvas:
            raise ValueError(
                f"the mask token {mask} is pinned at canvas position {list(canvas).index(mask)}; "
                "an open position is null, or in a blank"
            )
        return tuple(canvas)

    def _check_verbatim(self, cloze: blanks.Cloze, pinned: str) -> None:
        """Pinned text must come back from its tokens; some tokenizers change what they encode, or add spaces."""
        self._without_mask(cloze.canvas)
        prompt_ids = self._encode(cloze.prompt)
        ids = [token for token in cloze.canvas if token is not None]
        before, whole = (
            self.tokenizer.decode(part, clean_up_tokenization_spaces=False) for part in (prompt_ids, prompt_ids + ids)
        )
        if whole != before + pinned:
            raise ValueError(
                f"the tokenizer does not keep the text around the blanks: {pinned!r} comes back as "
                f"{whole.removeprefix(before)!r}"
            )


def draw(
    denoiser: Denoiser,
    requests: Sequence[Request],
    first: int,
    n: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
    on_step: Callable[[Look], None] | None = None,
) -> list[list[Trajectory]]:
    """The `n` trajectories of each request; `Trajectory.prompt` is the request's number, counted from `first`.

    Request i has the seed `derive_seed(seed, i)`, so its trajectories are the same in whatever portions the requests are
    drawn. Requests of one canvas length share their batches, and `on_step` counts the rows of these. A blank cannot end
    the completion before pinned text.
    """
    drawn: dict[int, list[Trajectory]] = {}
    groups: dict[SamplerConfig, list[int]] = {}
    for i, request in enumerate(requests):
        assert isinstance(request.config, SamplerConfig), "requests of `Reader`"
        groups.setdefault(request.config, []).append(i)
    for config, group in groups.items():
        portion = [requests[i] for i in group]
        empty = (None,) * config.canvas_length
        pinned = any(request.canvas for request in portion)
        trajectories = sample(
            denoiser,
            [request.prompt_ids for request in portion],
            config,
            n=n,
            seed=[derive_seed(seed, first + i) for i in group],
            canvases=[request.canvas or empty for request in portion] if pinned else None,
            bans=[_bans(request, denoiser) for request in portion] if pinned else None,
            progress=progress,
            on_step=on_step,
        )
        for k, trajectory in enumerate(trajectories):
            i = group[k // n]
            drawn.setdefault(i, []).append(replace(trajectory, prompt=first + i))
    return [drawn[i] for i in range(len(requests))]


def _bans(request: Request, denoiser: Denoiser) -> Sequence[tuple[int, int]]:
    """What may not be committed where: in blanks, the end of the completion before pinned text."""
    return blanks.bans(request.canvas or (), denoiser.eos_ids) if request.spans else ()


def result_row(request: Request, trajectories: Sequence[Trajectory], decode: Decode) -> dict[str, Any]:
    """A line of `results.jsonl`: the prompt, the row's other columns, its trajectories, and what was written in blanks."""
    row = known_columns(trajectories[0].prompt, request)
    if request.spans:
        row["blanks"] = [
            {
                "name": span.name,
                "start": span.start,
                "stop": span.stop,
                "texts": decode([trajectory.canvas_ids[span.start : span.stop] for trajectory in trajectories]),
            }
            for span in request.spans
        ]
    return {**row, "trajectories": [trajectory.to_dict() for trajectory in trajectories]}


def known_columns(index: int, request: Request) -> dict[str, Any]:
    """What is known of a line of `results.jsonl` before anything is sampled."""
    ours = ("index", "prompt", "blanks", "trajectories")
    return {"index": index, "prompt": request.text, **kept_columns(request.columns, ours)}


def read_result_row(row: Mapping[str, Any]) -> list[Trajectory]:
    """The trajectories of a line of `results.jsonl`, as they were; `ValueError` where it has none."""
    if not isinstance(row.get("trajectories"), list):
        raise ValueError("no 'trajectories': this is no row that `lockstitch sample` wrote")
    return [Trajectory.from_dict(values) for values in row["trajectories"]]


def load_trajectories(path: Path) -> list[Trajectory]:
    """All trajectories of a `results.jsonl`, as they were: by prompt, then in the order of their seeds.

    Raises `ValueError` for what is no file, and naming every bad line.
    """
    return [trajectory for row in read_rows(path, read_result_row) for trajectory in row]
