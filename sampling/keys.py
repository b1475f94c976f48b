"""The store of keys and values of a batch, kept in place by column.

A pass over some columns replaces theirs and sees the others as they were left.

Axes: R rows of the store, A of them in a pass, L columns, Q columns of a pass, d size of a head.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


@dataclass
class _Pass:
    """What a pass replaces and sees, of all layers alike: see `Store.begin`."""

    rows: torch.Tensor | slice
    columns: torch.Tensor | slice
    seen: int
    keeps: bool


class _Columns(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, `(R, heads, L, d)`: a pass replaces some columns of its rows and sees `:seen`."""

    def __init__(self, rows: int, columns: int, now: _Pass) -> None:
        super().__init__()
        self.size, self.now = (rows, columns), now

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
        rows, columns, seen = self.now.rows, self.now.columns, self.now.seen
        if not self.now.keeps:
            keys, values = self.keys[rows, :, :seen], self.values[rows, :, :seen]
            keys[:, :, columns], values[:, :, columns] = key_states, value_states
            return keys, values
        if isinstance(columns, slice):
            self.keys[rows, :, columns] = key_states
            self.values[rows, :, columns] = value_states
        else:
            assert isinstance(rows, torch.Tensor)
            at = (rows[:, None], slice(None), columns)  # so indexed, heads come last but one
            self.keys[at], self.values[at] = key_states.transpose(1, 2), value_states.transpose(1, 2)
        return self.keys[rows, :, :seen], self.values[rows, :, :seen]

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Gives rows `target`, in the columns of the last pass, what rows `source` hold there."""
        span = self.now.columns if isinstance(self.now.columns, slice) else slice(None)
        self.keys[target, :, span], self.values[target, :, span] = (
            self.keys[source, :, span],
            self.values[source, :, span],
        )

    def get_seq_length(self) -> int:
        return self.now.columns.start or 0 if isinstance(self.now.columns, slice) else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.now.seen, 0

    def get_max_length(self) -> int:
        return self.size[1]


class Store(Cache):  # type: ignore[misc]
    """Keys and values of all layers, handed to a model as its cache."""

    def __init__(self, layers: int, rows: int, columns: int) -> None:
        self.size, self.now = rows, _Pass(slice(None), slice(0), 0, True)
        super().__init__(layers=[_Columns(rows, columns, self.now) for _ in range(layers)])

    def begin(self, rows_A: torch.Tensor, columns: slice | torch.Tensor, seen: int, keeps: bool = True) -> None:
        """Before a pass of these rows, in rising order, that computes a span (or, `(A, Q)`, each row's own columns).

        One that does not keep what it computes may read a row of the store for several of its own.
        """
        whole = keeps and len(rows_A) == self.size and isinstance(columns, slice)
        self.now.rows = slice(None) if whole else rows_A
        self.now.columns, self.now.seen, self.now.keeps = columns, seen, keeps

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """After a pass: rows `target` are to hold what it wrote for rows `source`.

        After one over each row's own columns they must have held the same before, too.
        """
        for layer in self.layers:
            layer.copy(source, target)
