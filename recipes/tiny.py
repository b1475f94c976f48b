"""What the embedded models are made of: their tokenizer, their architecture and their generated training rows.

The tokenizer is a byte-level BPE, so that any text can be encoded, whose pre-tokenizer keeps every digit, every sign and
every space that does not open a word apart: numbers are spelled digit by digit and columns stay columns.
"""

import functools
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lockstitch.recipes.grids import check_shape, write_grid
from lockstitch.rewards.tasks.builtin import TASKS
from lockstitch.rewards.tasks.task import Task, held_out_problems, training_problems

from lockstitch.options import REFUSALS, in_a_line

VOCABULARY = 448
SPECIAL_TOKENS = ("<pad>", "<eos>", "<mask>")
_PIECES = r" ?[A-Za-z]+|\d|\s|[^\sA-Za-z\d]"


def build_tokenizer(texts: Iterator[str]) -> Any:
    """A `PreTrainedTokenizerFast` trained on the texts; lossless on any text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    pad, eos, mask = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=eos,
        mask_token=mask,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def new_model(tokenizer: Any, *, bidirectional: bool, seed: int, **shape: Any) -> Any:
    """A new model: a Llama of the given shape (`hidden_size`, `num_hidden_layers`, ...), randomly initialised.

    With `model_type="gpt2"` a GPT-2, in its config's words (`n_embd`, `n_layer`, ...); with `grid=9` too one that starts
    from the geometry of a grid of that side (`grids.py`), whose first cell is the second token.

    Raises `ValueError` for a shape that is none.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from lockstitch.sampling.denoiser import make_bidirectional
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    kind, grid = shape.pop("model_type", "llama"), shape.pop("grid", None)
    kinds = {"llama": (LlamaConfig, LlamaForCausalLM), "gpt2": (GPT2Config, GPT2LMHeadModel)}
    if kind not in kinds:
        raise ValueError(f"new_model: model_type={kind!r} is not one of {', '.join(kinds)}")
    if grid is not None and kind != "gpt2":
        raise ValueError(f"new_model: grid={grid} wants a vector for each position, as model_type=gpt2 has them")
    config_class, model_class = kinds[kind]
    unknown = sorted(set(shape) - set(config_class().to_dict()))
    if unknown:
        raise ValueError(f"new_model: {', '.join(unknown)} is not of {config_class.__name__}")
    if kind == "llama":
        shape = {"max_position_embeddings": 4096, **shape}
    try:
        config = config_class(
            vocab_size=len(tokenizer),
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **shape,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = model_class(config)
    except (*REFUSALS, StrictDataclassError) as error:
        raise ValueError(f"new_model={shape}: {in_a_line(error)}") from error
    if grid is not None:
        check_shape(config, grid)
        (digits,) = tokenizer(["123456789"[:grid]], add_special_tokens=False)["input_ids"]
        write_grid(model, digits, grid, 1, torch.Generator().manual_seed(seed))
    return make_bidirectional(model) if bidirectional else model


def prompt_completion_rows(task: Task, count: int, seed: int, *, held_out: bool = False) -> Iterator[dict[str, str]]:
    """TRL's prompt-completion rows for the diffusion model, from the training or the held-out side of the task's split."""
    for problem in (held_out_problems if held_out else training_problems)(task, count, seed):
        assert problem.solution is not None
        yield {"prompt": task.prompt(problem.question), "completion": problem.solution}


def tokenize_rows(rows: Iterable[dict[str, str]], tokenizer: Any) -> Iterator[dict[str, list[int]]]:
    """Prompt-completion rows as `input_ids` and `labels` (-100 on the prompt), EOS added: what TRL would make of them.

    Encoding thousands of texts at once is some fifty times faster than TRL's row-by-row map.
    """
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, 10_000)):
        prompts = tokenizer([row["prompt"] for row in chunk], add_special_tokens=False)["input_ids"]
        completions = tokenizer([row["completion"] for row in chunk], add_special_tokens=False)["input_ids"]
        for prompt, completion in zip(prompts, completions, strict=True):
            answer = [*completion, tokenizer.eos_token_id]
            yield {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def tokenize_clozes(rows: Iterable[dict[str, str]], tokenizer: Any) -> Iterator[dict[str, list[int]]]:
    """Rows whose prompts know a part of the completion, as `input_ids` and `labels`: -100 there too, and no EOS."""
    from lockstitch.sampling import blanks

    @functools.cache  # a few thousand texts stand between the blanks of all rows
    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    for row in rows:
        prompt, answer = encode(row["prompt"]), tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
        canvas = blanks.given(row["prompt"], encode)
        assert canvas is not None
        assert all(given in (None, token) for given, token in zip(canvas, answer, strict=True))
        labels = [token if given is None else -100 for given, token in zip(canvas, answer, strict=True)]
        yield {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + labels}


def task_tokens(
    task: Task, count: int, seed: int, tokenizer: Any, *, held_out: bool = False
) -> Iterator[dict[str, list[int]]]:
    """Rows of a task as tokens, see `prompt_completion_rows`; what is given of its completions is pinned."""
    rows = prompt_completion_rows(task, count, seed, held_out=held_out)
    return tokenize_rows(rows, tokenizer) if task.cloze is None else tokenize_clozes(rows, tokenizer)


def batch_by_length(
    rows: Sequence[dict[str, list[int]]], batch_size: int, seed: int, window: int = 32
) -> list[dict[str, list[int]]]:
    """The rows in an order whose successive batches hold rows of about one length, batches in random order.

    Rows are sorted within windows of `window` batches. Unlike the trainer's `group_by_length`, which runs from the longest
    rows of a window to its shortest again and again, no two neighbouring batches have to do with one another. Left-over
    rows that fill no batch are dropped.
    """
    rng = random.Random(f"batches {seed}")
    ordered = []
    for start in range(0, len(rows), window * batch_size):
        part = sorted(rows[start : start + window * batch_size], key=lambda row: len(row["input_ids"]))
        batches = [part[i : i + batch_size] for i in range(0, len(part) - batch_size + 1, batch_size)]
        rng.shuffle(batches)
        ordered += [row for batch in batches for row in batch]
    return ordered


def tokenizer_texts(count: int = 3000, seed: int = 0) -> Iterator[str]:
    """Prompts and completions of every task whose prompts are whole, for training the tokenizer."""
    for task in TASKS.values():
        if task.generate is not None and task.cloze is None:
            for row in prompt_completion_rows(task, count, seed):
                yield row["prompt"] + row["completion"]
