"""From rows of a data set to canvases of one batch.

A row is a prompt and a completion, plain or as messages (then the tokenizer's chat template writes both), or one
conversation, whose last message, the assistant's, is the completion. Completions are filled up with EOS to the canvas that
the sampler will show. Leaves out packing.

Axes: B rows, L positions.
"""

from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from lockstitch.sampling.chat import encode

IGNORED = -100
NEEDS_TEMPLATE = "need a chat template, and the tokenizer has none"


def first_row(dataset: Dataset | IterableDataset, name: str) -> dict[str, Any]:
    """The first row; `ValueError` where there is none."""
    first: dict[str, Any] | None = next(iter(dataset), None)
    if first is None:
        raise ValueError(f"the {name} data set is empty")
    return first


def check_completions(dataset: Dataset | IterableDataset, name: str, template: bool) -> dict[str, Any]:
    """The first row, of a data set with prompts and completions, conversations, or tokenized rows.

    `template` is whether the tokenizer has one. Raises `ValueError` where the columns hold none of these, where a row's are
    no texts or messages, where a conversation does not end with the assistant, and for messages without a template. Of a
    stream the first row alone is looked at.
    """
    first = first_row(dataset, name)
    if {"input_ids", "labels"} <= first.keys():
        return first
    if {"prompt", "completion"} <= first.keys():
        _check_rows(dataset, name, ("prompt", "completion"), template)
        return first
    if "messages" not in first:
        raise ValueError(
            f"the {name} data set has the columns {', '.join(first)}; a diffusion model is trained on 'prompt' "
            "and 'completion' (texts or messages), 'messages', or 'input_ids' and 'labels'"
        )
    _check_rows(dataset, name, ("messages",), template)
    return first


def check_prompts(dataset: Dataset | IterableDataset, name: str, template: bool) -> dict[str, Any]:
    """The same of a data set whose completions the model writes."""
    first = first_row(dataset, name)
    if "prompt" in first:
        _check_rows(dataset, name, ("prompt",), template)
    elif not {"input_ids", "labels"} <= first.keys():
        raise ValueError(
            f"the {name} data set has the columns {', '.join(first)}; rollouts need 'prompt' (a text or messages), or "
            "'input_ids' and 'labels'"
        )
    return first


def check_texts(dataset: Dataset | IterableDataset, name: str) -> dict[str, Any]:
    """The same of a data set of texts, a column `text`."""
    first = first_row(dataset, name)
    rows = dataset.select_columns(["text"]) if isinstance(dataset, Dataset) else dataset.take(1)
    for number, row in enumerate(rows):
        if not isinstance(row["text"], str):
            raise ValueError(f"row {number} of the {name} data set has the text {row['text']!r:.80}: a text is needed")
    return first


def check_template(dataset: Dataset | IterableDataset, name: str) -> None:
    """Raises `ValueError` for a data set of conversations, where the tokenizer has no template for them."""
    first = first_row(dataset, name)
    for column in ("messages", "prompt", "completion"):
        if _is_messages(first.get(column)):
            raise ValueError(
                f"row 0 of the {name} data set has messages under {column}, which {NEEDS_TEMPLATE}: texts, or a tokenizer "
                "that has one"
            )


def prompts_and_completions(
    dataset: Dataset | IterableDataset, name: str, template: bool = True
) -> Dataset | IterableDataset:
    """The data set with a column for the prompt and one for the completion; tokenized rows are left as they are.

    Raises `ValueError` as `check_completions` does.
    """
    first = check_completions(dataset, name, template)
    if {"input_ids", "labels"} <= first.keys() or {"prompt", "completion"} <= first.keys():
        return dataset
    return dataset.map(_last_message_apart, remove_columns=["messages"])


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) for part in value)


def _check_rows(dataset: Dataset | IterableDataset, name: str, columns: tuple[str, ...], template: bool) -> None:
    """Raises `ValueError` for the first row whose columns are no texts and no messages, or no whole conversation."""
    rows = dataset.select_columns(list(columns)) if isinstance(dataset, Dataset) else dataset.take(1)
    for number, row in enumerate(rows):
        for column in columns:
            value = row[column]
            messages = _is_messages(value)
            if not messages and (column == "messages" or not isinstance(value, str)):
                raise ValueError(
                    f"row {number} of the {name} data set has the {column} {value!r:.80}: "
                    f"{'messages' if column == 'messages' else 'a text or messages'} are needed"
                )
            if column == "messages" and (len(value) < 2 or value[-1]["role"] != "assistant"):
                raise ValueError(
                    f"row {number} of the {name} data set is a conversation of the roles "
                    f"{', '.join(str(message['role']) for message in value)}: the last must be the assistant's, which is "
                    "the completion, and one must come before"
                )
        if len({isinstance(row[column], str) for column in columns}) > 1:
            raise ValueError(
                f"row {number} of the {name} data set mixes a text and messages: both must be of one kind"
            )
    if not template:
        check_template(dataset, name)


def _leading(labels: list[int]) -> int:
    return next((i for i, label in enumerate(labels) if label != IGNORED), len(labels))


def _last_message_apart(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}


def prompts_alone(dataset: Dataset | IterableDataset, tokenizer: Any) -> Dataset | IterableDataset:
    """The prompts of a data set, tokenized, without completions if it has any: rows of `input_ids` and `labels` (-100).

    A conversation goes through the tokenizer's chat template; a text is taken as it is. Raises `ValueError` as
    `check_prompts` does.
    """
    first = check_prompts(dataset, "train", tokenizer.chat_template is not None)

    def alone(row: dict[str, Any]) -> dict[str, list[int]]:
        if "prompt" in row:
            ids = encode(row["prompt"], tokenizer)
        else:
            ids = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == IGNORED]
        return {"input_ids": ids, "labels": [IGNORED] * len(ids)}

    return dataset.map(alone, remove_columns=list(first))


def text_canvases(
    dataset: Dataset | IterableDataset, tokenizer: Any, eos_id: int, canvas: int, name: str = "train"
) -> Any:
    """Texts (column `text`) cut into canvases: rows of one token, which is the prompt, and the next `canvas` ones.

    A text ends in EOS; the token that a canvas ends with is the next one's prompt. Raises `ValueError` as `check_texts`.
    """
    first = check_texts(dataset, name)

    def cut(rows: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        pieces = []
        for text in rows["text"]:
            ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], eos_id]
            pieces += [ids[start : start + canvas + 1] for start in range(0, len(ids) - 1, canvas)]
        return {"input_ids": pieces, "labels": [[IGNORED, *piece[1:]] for piece in pieces]}

    return dataset.map(cut, batched=True, remove_columns=list(first))


def completion_lengths(dataset: Dataset) -> list[int]:
    """Tokens of each completion of a tokenized data set."""
    labels = dataset.select_columns(["labels"]).with_format("numpy")
    return [int((row != IGNORED).sum()) for batch in labels.iter(batch_size=1000) for row in batch["labels"]]


@dataclass
class CanvasCollator:
    """Pads completions with EOS up to the canvas, then rows on one side with padding that nothing attends to.

    Rows hold `input_ids` and `labels` as TRL prepares them (`-100` on the prompt; on a canvas also where a token is pinned,
    and such canvases are not filled up). What follows the last end of sequence
    (the line break that chat templates put there) is not part of the completion. Raises `ValueError` for a completion longer
    than the canvas.

    Attributes:
        pad_id, eos_id: what rows and what canvases are filled with.
        canvas_length: None takes the longest completion of the batch.
        ends: further tokens that end a completion, such as a chat template's.
        pads_left: pads rows on the left, so that their canvases lie in the same columns.
    """

    pad_id: int
    eos_id: int
    canvas_length: int | None
    ends: tuple[int, ...] = ()
    pads_left: bool = False

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        prompts = [_leading(row["labels"]) for row in rows]
        kept = [self._ended(list(row["input_ids"]), prompt) for row, prompt in zip(rows, prompts, strict=True)]
        lengths = [len(ids) - prompt for ids, prompt in zip(kept, prompts, strict=True)]
        canvas = self.canvas_length or max(lengths)
        if max(lengths) > canvas:
            raise ValueError(f"a completion of {max(lengths)} tokens does not fit canvas_length={canvas}")
        holes = [IGNORED in row["labels"][prompt:] for row, prompt in zip(rows, prompts, strict=True)]
        if any(holes):
            return self._pinned(rows)
        shape = (len(rows), max(prompts) + canvas)
        input_ids_BL = torch.full(shape, self.pad_id)
        labels_BL = torch.full(shape, IGNORED)
        attention_BL = torch.zeros(shape, dtype=torch.long)
        for i, (ids, prompt) in enumerate(zip(kept, prompts, strict=True)):
            begin = max(prompts) - prompt if self.pads_left else 0
            completion, end = begin + prompt, begin + prompt + canvas
            input_ids_BL[i, begin:end] = self.eos_id
            input_ids_BL[i, begin : begin + len(ids)] = torch.tensor(ids)
            labels_BL[i, completion:end] = input_ids_BL[i, completion:end]
            attention_BL[i, begin:end] = 1
        return {"input_ids": input_ids_BL, "labels": labels_BL, "attention_mask": attention_BL}

    def _pinned(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows whose canvases hold given tokens (`-100` between others): exactly as long as they are."""
        if self.canvas_length is not None or self.pads_left:
            raise ValueError(
                f"canvas_length={self.canvas_length}: canvases with pinned tokens have the length that they have, and are "
                "of one block; canvas_length=None, block_length=None"
            )
        width = max(len(row["input_ids"]) for row in rows)
        padded = {"input_ids": self.pad_id, "labels": IGNORED}
        made = {
            name: torch.tensor([[*row[name], *[fill] * (width - len(row[name]))] for row in rows])
            for name, fill in padded.items()
        }
        length_B1 = torch.tensor([[len(row["input_ids"])] for row in rows])
        return {**made, "attention_mask": (torch.arange(width) < length_B1).long()}

    def _ended(self, ids: list[int], prompt: int) -> list[int]:
        ends = [i for i in range(prompt, len(ids)) if ids[i] == self.eos_id or ids[i] in self.ends]
        return ids[: ends[-1] + 1] if ends else ids
