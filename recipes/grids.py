"""A transformer that starts out knowing the geometry of a grid: which cells share a row, a column and a box.

From random weights a small model spends most of its training on finding out which positions have to do with one another
(a 9x9 grid in one row of text has no hint of it). Here it is given that, and only that much of the rules which follows from
it: a cell's position says its row, its column and its box; three heads of every layer attend to the cells that share one of
them; and they carry over which digits stand there, which the first layer counts against the same digits in the cell itself.
Everything is trained from there on, and three free parts in eight of the width begin at random.

Written for GPT-2's class, which has a vector for each position.
"""

import math
from typing import Any

import torch

_REACH, _CARRY, _WRITE = 1.2, 0.5, 1.5  # strength of attending, of reading a digit, of writing it


def widths(side: int) -> int:
    """How much of the hidden size the geometry takes: three codes of a position, the digit, and what each head saw."""
    return 7 * side


def check_shape(config: Any, side: int) -> None:
    """Raises `ValueError` where a model has no room for the geometry of a grid of that side."""
    size, heads = config.n_embd, config.n_head
    if side not in (4, 9):
        raise ValueError(f"new_model: grid={side} is not a side of Sudoku: 4 or 9")
    if heads < 3 or size // heads < side or size < widths(side):
        raise ValueError(
            f"new_model: grid={side} takes three heads of {side} or more and a hidden size of at least {widths(side)}; "
            f"n_embd={size} in n_head={heads} is less"
        )


def write_grid(model: Any, digits: list[int], side: int, start: int, generator: torch.Generator) -> None:
    """Sets a GPT-2's weights as said above.

    Args:
        model: a `GPT2LMHeadModel` for which `check_shape` passes.
        digits: the tokens of the digits from 1 on.
        side: cells of a row.
        start: position of the first cell; rows are `side` cells and one token more, the line break.
        generator: of the random rest.
    """
    config = model.config
    size, width, layers = config.n_embd, config.n_embd // config.n_head, config.n_layer
    box = math.isqrt(side)
    codes, digit, seen = 0, 3 * side, 4 * side  # where in the hidden size they stand

    def noise(weight: torch.Tensor, deviation: float) -> None:
        weight.normal_(0, deviation, generator=generator)

    with torch.no_grad():
        tokens, places = model.transformer.wte.weight, model.transformer.wpe.weight
        noise(tokens, 0.04)
        noise(places, 0.02)
        tokens[:, : widths(side)] = 0
        places[:, : widths(side)] = 0
        for value, token in enumerate(digits):
            tokens[token, digit + value] = 1
        for row in range(side):
            for column in range(side):
                place = places[start + (side + 1) * row + column]
                place[codes + row] = 1
                place[codes + side + column] = 1
                place[codes + 2 * side + box * (row // box) + column // box] = 1
        for depth, block in enumerate(model.transformer.h):
            reads, writes = block.attn.c_attn.weight, block.attn.c_proj.weight
            noise(reads, 0.04)
            noise(writes, 0.04 / math.sqrt(layers))
            noise(block.mlp.c_fc.weight, 0.1)
            noise(block.mlp.c_proj.weight, 0.04 / math.sqrt(layers))
            for head in range(3):
                query, value = head * width, 2 * size + head * width
                for i in range(side):
                    for part in (0, size):  # queries and keys
                        reads[codes + head * side + i, part + query + i] += _REACH * (1 + depth / 4)
                    reads[digit + i, value + i] += _CARRY
                    writes[query + i, seen + head * side + i] += _WRITE
                    if depth == 0:
                        writes[query + i, digit + i] -= _WRITE
