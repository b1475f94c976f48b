"""The store of keys and values of a batch, kept in place by column.

A pass over some columns replaces theirs and sees the others as they were left.

Axes: R rows of the store, A of them in a pass, L columns, Q columns of a pass, d size of a head.
"""

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


class _Columns(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, `(R, heads, L, d)`: a pass replaces columns `first:last` of its rows, sees `:seen`."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.size = (rows, columns)
        self.rows: torch.Tensor | None = None  # None is all of them
        self.first = self.last = self.seen = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        def room(like: torch.Tensor) -> torch.Tensor:
            return like.new_zeros(self.size[0], like.shape[1], self.size[1], like.shape[3])

        self.keys, self.values = room(key_states), room(value_states)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows = slice(None) if self.rows is None else self.rows
        self.keys[rows, :, self.first : self.last] = key_states
        self.values[rows, :, self.first : self.last] = value_states
        return self.keys[rows, :, : self.seen], self.values[rows, :, : self.seen]

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Gives rows `target`, in the columns of the last pass, what rows `source` hold there."""
        span = slice(self.first, self.last)
        self.keys[target, :, span], self.values[target, :, span] = self.keys[source, :, span], self.values[source, :, span]

    def get_seq_length(self) -> int:
        return self.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen, 0

    def get_max_length(self) -> int:
        return self.size[1]


class Store(Cache):  # type: ignore[misc]
    """Keys and values of all layers, handed to a model as its cache."""

    def __init__(self, layers: int, rows: int, columns: int) -> None:
        super().__init__(layers=[_Columns(rows, columns) for _ in range(layers)])

    def begin(self, rows_A: torch.Tensor, first: int, last: int, seen: int) -> None:
        """Before a pass of these rows, in rising order, over columns `first:last` that sees `:seen`."""
        for layer in self.layers:
            layer.rows = None if len(rows_A) == layer.size[0] else rows_A
            layer.first, layer.last, layer.seen = first, last, seen

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """After a pass: rows `target` are to hold what it wrote for rows `source`."""
        for layer in self.layers:
            layer.copy(source, target)
