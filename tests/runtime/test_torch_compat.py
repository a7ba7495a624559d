"""rlkit takes names from torch's private side, with and without the names it prefers."""

from __future__ import annotations

import pytest
import torch

from rlkit.runtime import torch_compat
from rlkit.runtime.torch_compat import (
    copy_all,
    has_flash_operators,
    nvml_index,
    scale_all_,
    scaled_all,
    storage_key,
    times_written,
)

FOREACH = ("_foreach_copy_", "_foreach_mul", "_foreach_mul_")


@pytest.mark.parametrize("removed", [(), FOREACH], ids=["as-it-is", "without-foreach"])
def test_lists_of_tensors_are_copied_and_scaled(
    removed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in removed:
        monkeypatch.delattr(torch, name)
    sources = [torch.tensor([1.5, -2.0], dtype=torch.float64), torch.tensor([[4.0]])]
    targets = [torch.zeros(2), torch.zeros(1, 1)]
    copy_all(targets, sources)
    assert [t.tolist() for t in targets] == [[1.5, -2.0], [[4.0]]]
    assert [t.tolist() for t in scaled_all(targets, 3.0)] == [[4.5, -6.0], [[12.0]]]
    assert [t.tolist() for t in targets] == [[1.5, -2.0], [[4.0]]]
    scale_all_(targets, -0.5)
    assert [t.tolist() for t in targets] == [[-0.75, 1.0], [[-2.0]]]


def test_writes_in_place_are_counted() -> None:
    leaf = torch.zeros(2, requires_grad=True)
    before = times_written(leaf)
    with torch.no_grad():
        leaf.add_(1.0)
    assert times_written(leaf) == before + 1


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_views_share_their_storages_key_and_other_tensors_do_not(device: str) -> None:
    x, y = torch.zeros(4, device=device), torch.zeros(4, device=device)
    assert storage_key(x.untyped_storage()) == storage_key(x[1:].view(3, 1).untyped_storage())
    assert storage_key(x.untyped_storage()) != storage_key(y.untyped_storage())


def test_flash_operators_are_as_expected_and_another_signature_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without them, packed rows are attended to in padded batches."""
    assert has_flash_operators()
    forward, _ = torch_compat._FLASH
    for wrong in (
        forward._replace(num_positional=9),
        forward._replace(keywords=("scale", "window")),
        forward._replace(num_results=4),
        forward._replace(name="_no_such_attention"),
    ):
        assert not torch_compat._is_as_expected(wrong)
    monkeypatch.setattr(torch_compat, "_FLASH", (forward._replace(num_results=4),))
    has_flash_operators.cache_clear()
    try:
        assert not has_flash_operators()
    finally:
        has_flash_operators.cache_clear()


def test_a_torch_without_the_drivers_numbers_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cuda, "_get_nvml_device_index")
    assert nvml_index(0) is None
