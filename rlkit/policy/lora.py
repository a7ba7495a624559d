"""LoRA adapters are explicit tensors here: y = W x + s B (A x).

The scale is s = alpha / rank; with rsLoRA it is alpha / sqrt(rank).

An adapter is a `dict[str, Tensor]` of float32 (or bfloat16) tensors under PEFT's key names,
`<layer>.lora_A.weight` (r, in) and `<layer>.lora_B.weight` (out, r). The model holds none of them.
`LoRA.active(adapter)` says which adapter the forward passes inside it use. `active(None)` is
exactly the base model, or that with `LoRA.reference` where a run started from an adapter.

Source: Hu et al. 2021, arXiv:2106.09685, eq. 3; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732.
"""

from __future__ import annotations

import hashlib
import math
import weakref
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlkit.models.compat import last_products
from rlkit.models.config import AdapterDType
from rlkit.models.config import LoRAConfig as LoRAConfig
from rlkit.models.joined import Frozen, Projection, product
from rlkit.models.quantised import is_quantised
from rlkit.models.recompute import NamesInside, Trained
from rlkit.policy.lora_groups import Factors, Groups
from rlkit.policy.lora_groups import LayerShape as LayerShape
from rlkit.policy.lora_linear import compute_copies, unread_linear, updated_linear

PREFIX = "base_model.model."
"""PEFT puts this before the layer's name in the model."""
_AT_ONCE = 10**7
"""Numbers that are copied together: few launches, and not all gradients twice in memory."""


class LoRA:
    """This object has the adapted layers of one model and the adapter that they use now."""

    def __init__(
        self,
        config: LoRAConfig,
        shapes: Mapping[str, LayerShape],
        dtype: torch.dtype,
        *,
        last_products: Container[str] = (),
    ) -> None:
        """Adapt layers; nobody reads `last_products` where a decoder layer runs again."""
        self.config = config
        self.shapes = dict(shapes)
        """The shape of each adapted layer, by its name in the model."""
        self.dtype = dtype
        """Compute dtype; gradients flow back to the tensors of the adapter, in their own."""
        self.reference: Mapping[str, Tensor] | None = None
        """The adapter of the reference policy; None = it is the base model."""
        self._factors: Factors | None = None
        self._last_products = last_products
        self._unread: Container[str] = ()
        self._plain: set[str] = set()
        self._groups = Groups(self.shapes, config.rank)
        self._inside = NamesInside(self._groups.layers)

    @contextmanager
    def active(self, adapter: Mapping[str, Tensor] | None) -> Iterator[None]:
        """Forward passes inside use `adapter`; None = that of the reference policy. Nests.

        The scaled copies in the compute dtype are made here, once for all passes inside. So
        changing the adapter's tensors in place inside has no effect on them. Raises ValueError when
        the adapter's keys or shapes do not fit the model.
        """
        tensors = self.reference if adapter is None else adapter
        factors = None if tensors is None else self._factorise(tensors)
        with self._using(factors):
            yield

    def trained_in(self, layer: str) -> Trained:
        """Return the active adapter's factors inside a layer of the model that holds others."""
        factors = self._factors or {}
        names = self._inside(layer) if factors else ()

        def again(tensors: Sequence[Tensor]) -> AbstractContextManager[None]:
            pairs = zip(tensors[::2], tensors[1::2], strict=True)
            inside = dict(zip(names, pairs, strict=True)) if factors else None
            return self._using(inside, unread=self._last_products)

        return Trained(tuple(t for name in names for t in factors[name]), again)

    def key(self, layer: str, factor: str) -> str:
        """Return PEFT's key of factor "A" or "B" of a layer."""
        return f"{PREFIX}{layer}.lora_{factor}.weight"

    def expected_shapes(self) -> dict[str, tuple[int, int]]:
        """Return the shape of every tensor of an adapter for this model, by key."""
        shapes: dict[str, tuple[int, int]] = {}
        for layer, shape in self.shapes.items():
            shapes[self.key(layer, "A")] = (self.config.rank, shape.num_inputs)
            shapes[self.key(layer, "B")] = (shape.num_outputs, self.config.rank)
        return shapes

    def hook(self, layer: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        """Return the forward hook that adds the adapter's s B (A x) to the output of `layer`."""

        def add_update(
            _module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor
        ) -> Tensor | None:
            if self._factors is None:
                return None
            a, scaled_b = self._groups.factors_of(layer, self._factors)
            return out + F.linear(F.linear(inputs[0], a), scaled_b)

        return add_update

    def linear(self, layer: str, module: nn.Linear) -> Projection:
        """Return the forward method of a frozen `module`, with the adapter's update."""
        self._plain.add(layer)
        # Weak: a module that holds itself would outlive its model, and an engine's weights with it.
        plain = (weakref.proxy(module),)

        def forward(x: Tensor) -> Tensor:
            frozen = _frozen(plain)
            if self._factors is None:
                return product(x, frozen)
            a, scaled_b = self._groups.factors_of(layer, self._factors)
            if layer in self._unread:
                return unread_linear(x, frozen, a, scaled_b)
            return updated_linear(x, frozen, a, scaled_b)

        return forward

    def join(self, layers: Mapping[str, nn.Module]) -> Projection | None:
        """Compute several layers with one input, by name, as one; None where they cannot be.

        To be called before the first `active`. Each layer still computes by itself when called.
        """
        if not self._plain.issuperset(layers) or not self._groups.may_join(list(layers)):
            return None
        plain = tuple(weakref.proxy(module) for module in layers.values())
        if len({module.bias is None for module in plain}) > 1:
            return None
        group = self._groups.join(list(layers))
        self._inside = NamesInside(self._groups.layers)

        def forward(x: Tensor) -> Tensor:
            frozen = _frozen(plain)
            if self._factors is not None:
                return updated_linear(x, frozen, *self._factors[group])
            return product(x, frozen)

        return forward

    @contextmanager
    def _using(self, factors: Factors | None, *, unread: Container[str] = ()) -> Iterator[None]:
        previous = self._factors, self._unread
        self._factors, self._unread = factors, unread
        try:
            yield
        finally:
            self._factors, self._unread = previous

    def _factorise(self, adapter: Mapping[str, Tensor]) -> Factors:
        check_adapter(self, adapter)
        factors: dict[str, tuple[Tensor, Tensor]] = {}
        for names in self._groups.portions(_AT_ONCE):
            groups = [
                [(adapter[self.key(layer, "A")], adapter[self.key(layer, "B")]) for layer in layers]
                for layers in (self._groups.layers[name] for name in names)
            ]
            # Scaled in float32 and rounded once; vLLM, too, folds the scale into B.
            copies = compute_copies(groups, scale=self.config.scale, dtype=self.dtype)
            factors.update(zip(names, copies, strict=True))
        return factors


def _frozen(modules: Sequence[Any]) -> Frozen:
    return Frozen(
        tuple(module.weight for module in modules),
        tuple(module.bias for module in modules if module.bias is not None),
        [module.out_features for module in modules],
    )


def target_layers(model: nn.Module, config: LoRAConfig) -> dict[str, nn.Linear]:
    """Return the layers of `model` that `config` adapts, by name.

    Raises ValueError when a target is not a linear layer of the model.
    """
    layers = {name: module for name, module in model.named_modules() if _adaptable(name, module)}
    unknown = [t for t in config.targets if not any(_matches(name, t) for name in layers)]
    if unknown or not layers:
        leaves = sorted({name.rsplit(".", 1)[-1] for name in layers})
        raise ValueError(
            f"model.lora.targets must be among the linear layers of the model "
            f"({', '.join(leaves)}), got {', '.join(unknown)}"
        )
    return {
        name: module
        for name, module in layers.items()
        if not config.targets or any(_matches(name, target) for target in config.targets)
    }


def attach(model: nn.Module, config: LoRAConfig, *, dtype: torch.dtype) -> LoRA:
    """Hook the target layers of `model` up to a new `LoRA`. Parameter names stay as they are.

    It is a forward method or a hook, not a wrapping module. So the model's state dict, its views in
    vLLM and its export keep their names. A layer of an unknown kind is treated as a black box.
    Raises ValueError when a target is not a linear layer of the model.
    """
    chosen = target_layers(model, config)
    shapes = {n: LayerShape(m.in_features, m.out_features) for n, m in chosen.items()}
    lora = LoRA(config, shapes, dtype, last_products=last_products(model))
    for name, module in chosen.items():
        known = type(module) is nn.Linear or is_quantised(module.weight)
        plain = known and not module.weight.requires_grad
        if plain and "forward" not in vars(module):
            module.forward = lora.linear(name, module)  # type: ignore[assignment,method-assign]
        else:
            module.register_forward_hook(lora.hook(name))
    return lora


def init_adapter(lora: LoRA, *, seed: int, device: torch.device) -> dict[str, Tensor]:
    """Return a new adapter: A uniform in +-1/sqrt(in) (PEFT's Kaiming initialisation), B = 0.

    Each tensor depends on `seed` and its key alone, not on the global generator or other targets;
    drawn in float32, rounded once to `model.lora.dtype`.
    """
    adapter: dict[str, Tensor] = {}
    for key, shape in lora.expected_shapes().items():
        tensor = torch.zeros(shape)
        if key.endswith("lora_A.weight"):
            bound = 1.0 / math.sqrt(shape[1])
            tensor.uniform_(-bound, bound, generator=_generator(seed, key))
        adapter[key] = tensor.to(device, stored_dtype(lora.config)).requires_grad_()
    return adapter


def stored_dtype(config: LoRAConfig) -> torch.dtype:
    """Return the dtype in which the tensors of an adapter are stored."""
    return torch.bfloat16 if config.dtype is AdapterDType.bf16 else torch.float32


def check_adapter(lora: LoRA, adapter: Mapping[str, Tensor]) -> None:
    """Raise ValueError, naming the keys, unless `adapter` has exactly the tensors of this model."""
    expected = lora.expected_shapes()
    if problem := _name_keys("is missing", [k for k in expected if k not in adapter]):
        raise ValueError(problem)
    if problem := _name_keys("has unexpected", [k for k in adapter if k not in expected]):
        raise ValueError(problem)
    for key, shape in expected.items():
        if tuple(adapter[key].shape) != shape:
            raise ValueError(
                f"adapter tensor {key} must have shape {shape}, got {tuple(adapter[key].shape)}"
            )


def _name_keys(problem: str, keys: list[str]) -> str:
    if not keys:
        return ""
    shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
    return f"the adapter {problem} tensors: {shown}"


def _matches(layer: str, target: str) -> bool:
    return layer == target or layer.endswith(f".{target}")


def _adaptable(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] != "lm_head"


def _generator(seed: int, key: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
