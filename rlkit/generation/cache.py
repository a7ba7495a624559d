"""The key-value cache of `hf` appends in place, drops rows and continues a shared prefix.

It is a `Cache` made of our layers, which the models fill through `Cache.update`. Sliding-window
models get full-length layers too; their attention masks, which transformers builds from the length
of the cache, do the windowing.
"""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from rlkit.models.compat import Cache, DynamicLayer

_ROOM = 64
"""Spare columns, so that keys and values are copied once in so many tokens, not at every token."""


class AppendLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A `DynamicLayer` that writes new columns into spare room instead of concatenating.

    `keys` and `values` are views of the filled columns, (rows, heads, columns, head size).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        self._key_room: Tensor | None = None
        self._value_room: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append columns; return all keys and values. (The signature is transformers'.)"""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        self._key_room = _with_room(self._key_room, key_states, start)
        self._value_room = _with_room(self._value_room, value_states, start)
        return self._show(start + key_states.shape[-2])

    def take_rows(self, rows: Int[Tensor, " R"]) -> None:
        """Make row i what row `rows[i]` was; rows may be dropped and repeated."""
        if self._key_room is None or self._value_room is None:
            return
        columns = self.get_seq_length()
        self._key_room = self._key_room.index_select(0, rows)
        self._value_room = self._value_room.index_select(0, rows)
        self._show(columns)

    def keep_columns(self, count: int) -> None:
        """Keep the first `count` columns alone."""
        if self._key_room is not None:
            self._show(count)

    def take_columns(self, columns: Int[Tensor, "N W"]) -> None:
        """Make column w of row i what column `columns[i, w]` was."""
        keys, values = self.filled()
        index = columns[:, None, :, None]
        self._key_room = keys.gather(2, index.expand(-1, keys.shape[1], -1, keys.shape[3]))
        self._value_room = values.gather(2, index.expand(-1, values.shape[1], -1, values.shape[3]))
        self._show(columns.shape[1])

    def filled(self) -> tuple[Tensor, Tensor]:
        """Return keys and values of the filled columns."""
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def _show(self, columns: int) -> tuple[Tensor, Tensor]:
        assert self._key_room is not None and self._value_room is not None
        self.keys = self._key_room[:, :, :columns]
        self.values = self._value_room[:, :, :columns]
        return self.keys, self.values


def _with_room(room: Tensor | None, states: Tensor, start: int) -> Tensor:
    """Return `room` with `states` written from column `start` on, enlarged if they do not fit."""
    end = start + states.shape[-2]
    if room is None or end > room.shape[-2]:
        larger = states.new_empty((*states.shape[:2], end + _ROOM, states.shape[-1]))
        if room is not None:
            larger[:, :, :start] = room[:, :, :start]
        room = larger
    room[:, :, start:end] = states
    return room


def empty_cache() -> Cache:
    """Return a cache without columns; the model's first forward pass gives it its layers."""
    return Cache(layer_class_to_replicate=AppendLayer)


def take_rows(cache: Cache, rows: Int[Tensor, " R"]) -> None:
    """Make row i of every layer what row `rows[i]` was, one layer after the other."""
    for layer in cache.layers:
        assert isinstance(layer, AppendLayer)
        layer.take_rows(rows)


def keep_columns(cache: Cache, count: int) -> None:
    """Keep the first `count` columns of every layer."""
    for layer in cache.layers:
        assert isinstance(layer, AppendLayer)
        layer.keep_columns(count)


def take_columns(cache: Cache, columns: Int[Tensor, "N W"]) -> None:
    """Make column w of row i of every layer what column `columns[i, w]` was."""
    for layer in cache.layers:
        assert isinstance(layer, AppendLayer)
        layer.take_columns(columns)


def spread_prefix(prefix: Cache, columns: Int[Tensor, "N W"]) -> Cache:
    """Return a cache of N rows: column w of row i is column `columns[i, w]` of `prefix`."""
    cache = empty_cache()
    for index, source in enumerate(prefix.layers):
        assert isinstance(source, AppendLayer)
        keys, values = (states[0][:, columns].transpose(0, 1) for states in source.filled())
        cache.update(keys, values, index)
    return cache


def check_layers(model: PreTrainedModel) -> None:
    """Raise ValueError when a layer of `model` keeps something else than keys and values."""
    layer_types = set(model.config.get_text_config().to_dict().get("layer_types") or ())
    if unknown := layer_types - {"full_attention", "sliding_attention"}:
        raise ValueError(
            f"generator=hf must have a model of full_attention and sliding_attention layers, "
            f"got {sorted(unknown)} in {type(model).__name__}"
        )


def check_whole_attention(model: PreTrainedModel) -> None:
    """Raise ValueError when a layer of `model` sees a window of columns.

    Columns out of use lie between those of a row whose guesses were wrong, and a window counts
    them.
    """
    config = model.config.get_text_config().to_dict()
    layer_types = set(config.get("layer_types") or ())
    windows = "sliding_attention" in layer_types if layer_types else config.get("sliding_window")
    if windows:
        raise ValueError(
            "generator.speculation.kind must be none with generator=hf and a model of "
            f"sliding_attention layers, got {type(model).__name__}"
        )
