"""A model of every family on another one's weights: ties, buffers, and not one copy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import random_ids, tiny_model

from rlkit.models.families import FAMILIES
from rlkit.models.views import model_on_views, shared_bytes

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_bitwise_those_of_the_owner(family: str, tmp_path: Path) -> None:
    own = tiny_model(family, dtype=torch.float32)
    # Each tensor once, as an engine has it: a head that is tied to the embedding has no name.
    views = {name: parameter.detach() for name, parameter in own.named_parameters()}
    attention = own.config._attn_implementation
    model = model_on_views(
        own.config, views, str(tmp_path), dtype=torch.float32, device=CPU, attention=attention
    )
    model.train(False)
    ids = torch.tensor([random_ids(40, seed=n) for n in range(2)])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, own(ids).logits)
    assert shared_bytes(model, views) == sum(view.nbytes for view in views.values())
