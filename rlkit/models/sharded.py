"""Each rank keeps a part of every decoder layer's frozen weights: torch's `fully_shard` (FSDP2).

All ranks gather a layer's weights when it computes, and drop them behind it. So a card holds one
layer whole, and of the others its part. Embedding and head stay whole: the log-probs' kernels read
the head by themselves, outside of any layer.

All ranks must make the same passes through the layers at the same time, as each pass gathers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from rlkit.models.compat import recomputable_layers
from rlkit.models.families import backbone_of


def shard_layers(model: PreTrainedModel, mesh: DeviceMesh, *, device: torch.device) -> None:
    """Leave this rank its part of each decoder layer of `model`, which moves to `device`.

    Args:
        model: A frozen model in host memory, the same on all ranks. It moves layer by layer, so
            that the device never holds all of it.
        mesh: The ranks that share the weights, in one dimension.
        device: The device of this rank.
    """
    for layer in recomputable_layers(model).values():
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    # One root over all of them: gathers of the next layer then overlap with this one's products.
    fully_shard(backbone_of(model), mesh=mesh, ignored_params=_whole(model))
    nn.Module.to(model, device)


def _whole(model: nn.Module) -> set[nn.Parameter]:
    return {parameter for parameter in model.parameters() if not is_sharded(parameter)}


def is_sharded(tensor: Tensor) -> bool:
    """Return whether this rank has only a part of `tensor`."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
