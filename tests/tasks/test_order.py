"""Which examples a step sees."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkit.tasks import train_indices


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 2**31 - 1))
def test_every_example_once_per_epoch(size: int, batch: int, seed: int) -> None:
    num_steps = -(-3 * size // batch)
    stream = [i for step in range(num_steps) for i in train_indices(seed, step, batch, size)]
    assert len(stream) == num_steps * batch
    for epoch in range(len(stream) // size):
        assert sorted(stream[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_and_seeds_have_their_own_order() -> None:
    def epoch(seed: int, number: int, attempt: int = 0) -> tuple[int, ...]:
        return tuple(train_indices(seed, number, 1000, 1000, attempt=attempt))

    orders = {epoch(0, 0), epoch(0, 1), epoch(1, 0), epoch(0, 0, attempt=1)}
    assert len(orders) == 4
    assert tuple(range(1000)) not in orders


@pytest.mark.parametrize("size", [None, 7, 1000])
def test_a_step_does_not_depend_on_those_before(size: int | None) -> None:
    alone = train_indices(5, 123, 16, size)
    for step in range(123):
        train_indices(5, step, 16, size)
    train_indices(6, 123, 16, size)
    assert train_indices(5, 123, 16, size) == alone


def test_batch_size_does_not_change_the_stream() -> None:
    def stream(batch: int) -> list[int]:
        return [i for step in range(60 // batch) for i in train_indices(2, step, batch, 13)]

    assert stream(4) == stream(5) == stream(20)


def test_endless_splits_are_read_in_order_from_a_place_of_their_own() -> None:
    places = []
    for seed in (0, 1, 2**31 - 1):
        for attempt in (0, 1):
            stream = [
                i for step in range(50) for i in train_indices(seed, step, 6, None, attempt=attempt)
            ]
            assert stream == list(range(stream[0], stream[0] + 300))
            places += stream
    assert train_indices(0, 0, 3, None) == [0, 1, 2]
    assert max(Counter(places).values()) == 1
    assert max(places) < 2**63


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match="must hold an example, got none"):
        train_indices(0, 0, 4, 0)
