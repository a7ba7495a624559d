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
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from rlkit.models.compat import recomputable_layers
from rlkit.models.families import backbone_of


def shard_layers(model: PreTrainedModel, mesh: DeviceMesh, *, device: torch.device) -> str:
    """Leave this rank its part of each decoder layer of `model`, which moves to `device`.

    Args:
        model: A frozen model in host memory, the same on all ranks. It moves layer by layer, so
            that the device never holds all of it.
        mesh: The ranks that share the weights, in one dimension.
        device: The device of this rank.

    Returns:
        One line on what is where.
    """
    for layer in recomputable_layers(model).values():
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    # One root over all of them: gathers of the next layer then overlap with this one's products.
    fully_shard(backbone_of(model), mesh=mesh, ignored_params=_whole(model))
    nn.Module.to(model, device)
    parts = sum(map(_own_bytes, model.parameters())) / 1e9
    total = sum(parameter.nbytes for parameter in model.parameters()) / 1e9
    return f"base: {parts:.2f} of {total:.2f} GB of weights here, layers over {mesh.size()} ranks"


def _whole(model: nn.Module) -> set[nn.Parameter]:
    return {parameter for parameter in model.parameters() if not isinstance(parameter, DTensor)}


def _own_bytes(parameter: Tensor) -> int:
    return parameter.to_local().nbytes if isinstance(parameter, DTensor) else parameter.nbytes
