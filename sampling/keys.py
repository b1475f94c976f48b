"""The store of keys and values of a batch, kept in place by column.

A pass over some columns replaces theirs and sees the others as they were left.

Axes: R rows of the store, A of them in a pass, L columns, Q columns of a pass, d size of a head.
"""

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


class _Columns(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, `(R, heads, L, d)`: a pass replaces some columns of its rows and sees `:seen`."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.size = (rows, columns)
        self.rows: torch.Tensor | slice = slice(None)
        self.columns: torch.Tensor | slice = slice(0)
        self.seen, self.keeps = 0, True

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
        if not self.keeps:
            keys, values = self.keys[self.rows, :, : self.seen], self.values[self.rows, :, : self.seen]
            keys[:, :, self.columns], values[:, :, self.columns] = key_states, value_states
            return keys, values
        if isinstance(self.columns, slice):
            self.keys[self.rows, :, self.columns] = key_states
            self.values[self.rows, :, self.columns] = value_states
        else:
            assert isinstance(self.rows, torch.Tensor)
            at = (self.rows[:, None], slice(None), self.columns)  # so indexed, heads come last but one
            self.keys[at], self.values[at] = key_states.transpose(1, 2), value_states.transpose(1, 2)
        return self.keys[self.rows, :, : self.seen], self.values[self.rows, :, : self.seen]

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Gives rows `target`, in the columns of the last pass, what rows `source` hold there."""
        span = self.columns if isinstance(self.columns, slice) else slice(None)
        self.keys[target, :, span], self.values[target, :, span] = (
            self.keys[source, :, span],
            self.values[source, :, span],
        )

    def get_seq_length(self) -> int:
        return self.columns.start or 0 if isinstance(self.columns, slice) else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen, 0

    def get_max_length(self) -> int:
        return self.size[1]


class Store(Cache):  # type: ignore[misc]
    """Keys and values of all layers, handed to a model as its cache."""

    def __init__(self, layers: int, rows: int, columns: int) -> None:
        super().__init__(layers=[_Columns(rows, columns) for _ in range(layers)])

    def begin(self, rows_A: torch.Tensor, columns: slice | torch.Tensor, seen: int, keeps: bool = True) -> None:
        """Before a pass of these rows, in rising order, that computes a span (or, `(A, Q)`, each row's own columns).

        One that does not keep what it computes may read a row of the store for several of its own.
        """
        for layer in self.layers:
            whole = keeps and len(rows_A) == layer.size[0] and isinstance(columns, slice)
            layer.rows = slice(None) if whole else rows_A
            layer.columns, layer.seen, layer.keeps = columns, seen, keeps

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """After a pass: rows `target` are to hold what it wrote for rows `source`.

        After one over each row's own columns they must have held the same before, too.
        """
        for layer in self.layers:
            layer.copy(source, target)
