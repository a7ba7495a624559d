"""Handle rotary factors that depend on the length of a sequence: LongRoPE and dynamic NTK.

transformers takes the factors of a whole batch from its longest position. A packed row, a batch of
rows and a key-value cache would then rotate a short sequence by the factors of a longer one. Inside
`row_lengths` each token is rotated by the factors of its own row instead.

LongRoPE has one set of factors up to `original_max_position_embeddings` and one beyond. Dynamic NTK
changes its base with every token beyond `max_position_embeddings`. The sampler cannot know the
final length of a row that grows across such a switch. So it has no logps that both a sampler and a
trainer could agree on, and `check_lengths` and `check_row` refuse it.

Sources: LongRoPE, Ding et al. 2024, arXiv:2402.13753; dynamic NTK: `modeling_rope_utils` of
transformers, 5.17 to 5.24.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

_STATIC = ("default", "linear", "yarn", "llama3", "proportional")
"""Rope types whose factors are the same at every length."""
_SWITCHING = ("longrope", "dynamic")


def switches(config: PreTrainedConfig) -> dict[str, int]:
    """Return the longest row that keeps its first factors, by rope type; empty for static ones.

    Raises ValueError, naming the model and the rope type, for a type that is not known here.
    """
    found: dict[str, int] = {}
    for parameters in _parameters(config).values():
        kind = str(parameters.get("rope_type") or parameters.get("type") or "default")
        if kind in _STATIC:
            continue
        if kind not in _SWITCHING:
            raise ValueError(
                f"model.source must have a rope type of {', '.join(_STATIC + _SWITCHING)}, got "
                f"{_name(config)} with rope type {kind}"
            )
        found[kind] = min(_switch(config, kind, parameters), found.get(kind, 2**62))
    return found


def check_lengths(config: PreTrainedConfig, longest: int) -> None:
    """Raise ValueError, with one line, unless rows of up to `longest` tokens keep their factors."""
    for kind, last in switches(config).items():
        if longest > last:
            raise ValueError(
                f"task.max_prompt_length + task.max_completion_length must be <= {last} for "
                f"{_name(config)} with rope type {kind}, whose factors change beyond it (or set "
                f"model.rope_length={longest} to use one set of factors for all rows), got "
                f"{longest}"
            )


def factors_key(model: nn.Module, length: int) -> tuple[int, ...]:
    """Return a key that is equal for two lengths exactly when their rows have the same factors."""
    if not _rotary_modules(model):
        return ()
    config: Any = model.config
    return tuple(
        int(length > last) if kind == "longrope" else max(length, last)
        for kind, last in switches(config).items()
    )


def one_set(model: nn.Module, lengths: Tensor) -> bool:
    """Return whether rows of all `lengths` have the same factors, so that they can share tokens."""
    if not _rotary_modules(model):
        return True  # without waiting for the device
    return len({factors_key(model, int(n)) for n in (lengths.min(), lengths.max())}) == 1


def check_row(model: nn.Module, prompt_length: int, row_length: int) -> None:
    """Raise ValueError, with one line, when a row changes its factors after its prompt."""
    if factors_key(model, prompt_length) != factors_key(model, row_length):
        config: Any = model.config
        (kind, last), *_ = switches(config).items()
        raise ValueError(
            f"prompt and completion together must have <= {last} tokens for {_name(config)} with "
            f"rope type {kind}, whose factors change beyond it (or set model.rope_length), got "
            f"{prompt_length} tokens of a prompt and up to {row_length - prompt_length} more"
        )


@contextmanager
def row_lengths(model: nn.Module, lengths: Tensor | int) -> Iterator[None]:
    """Inside, the rotary modules of `model` rotate each token by the factors of its row's length.

    Nothing changes for models whose factors do not depend on the length.

    Args:
        model: A model of transformers, or its backbone.
        lengths: One length for all tokens, or the length of each token's row. A tensor has the
            shape of the position ids without their batch axis.

    Yields:
        Nothing; the modules have transformers' own forward again afterwards.
    """
    with ExitStack() as stack:
        for module in _rotary_modules(model):
            # An instance attribute hides the method of the class; deleting it puts that back.
            module.forward = _forward(module, lengths)
            stack.callback(delattr, module, "forward")
        yield


def fix_all_rows(model: nn.Module, length: int | None, *, source: str) -> tuple[str, ...]:
    """Apply `model.rope_length` to a loaded model, and return a line that says so.

    Nothing happens for None. Raises ValueError when the factors of the model are static.
    """
    if length is None:
        return ()
    config: Any = model.config
    if not switches(config):
        raise ValueError(
            "model.rope_length must be unset for a model whose rotary factors are the same at "
            f"every length, got {length} for {source}"
        )
    fix_factors(model, length)
    return (f"rotary factors: those of a row of {length} tokens for all rows (model.rope_length)",)


def fix_factors(model: nn.Module, length: int) -> None:
    """Give every row of `model`, whatever its length, the factors of a row of `length` tokens."""
    for module in _rotary_modules(model):
        for layer_type, prefix in _layer_types(module):
            frequencies = _frequencies(module, length, layer_type)
            buffer = getattr(module, f"{prefix}inv_freq")
            setattr(module, f"{prefix}inv_freq", frequencies.to(buffer))
            if layer_type is None:
                module.rope_type = "default"
            else:
                module.rope_type = {**module.rope_type, layer_type: "default"}


def fixed_config(config: PreTrainedConfig, length: int | None) -> PreTrainedConfig:
    """Return a copy of `config` with the rotary factors of a row of `length` at every length.

    It says in a config what `fix_factors` does to a model, so that other libraries compute the
    same. None leaves the factors as they are.
    """
    fixed = copy.deepcopy(config)
    if length is None:
        return fixed
    for parameters in _parameters(fixed).values():
        kind = str(parameters.get("rope_type") or parameters.get("type") or "default")
        if kind == "longrope":
            # The attention factor is the same for both sets.
            switch = _switch(fixed, kind, parameters)
            chosen = parameters["long_factor" if length > switch else "short_factor"]
            parameters["long_factor"] = parameters["short_factor"] = list(chosen)
        elif kind == "dynamic":
            parameters["rope_theta"] = _base_of_dynamic(fixed, parameters, length)
            parameters["rope_type"] = "default"
            parameters.pop("factor", None)
            parameters.pop("type", None)
    return fixed


def _base_of_dynamic(config: Any, parameters: dict[str, Any], length: int) -> float:
    """Return the base of dynamic NTK for a row of `length` tokens.

    base' = base ((factor n / m) - (factor - 1))^(d / (d - 2)), n = max(length, m), m = the longest
    row of the pretraining, d = the rotated dimensions.
    """
    most = int(config.max_position_embeddings)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotated = int(head * parameters.get("partial_rotary_factor", 1.0))
    factor, base = float(parameters["factor"]), float(parameters["rope_theta"])
    stretch = factor * max(length, most) / most - (factor - 1.0)
    return float(base * stretch ** (rotated / (rotated - 2)))


def _rotary_modules(model: nn.Module) -> list[Any]:
    """Return the modules whose factors change; for most models one look at the config says none."""
    config: Any = model.config
    if not switches(config):
        return []
    return [
        module
        for module in model.modules()
        if isinstance(getattr(module, "rope_type", None), str | dict) and any(_layer_types(module))
    ]


def _layer_types(module: Any) -> list[tuple[str | None, str]]:
    """Yield (layer type, prefix of its attributes) of the factors that change with the length."""
    if isinstance(module.rope_type, str):
        return [(None, "")] if module.rope_type in _SWITCHING else []
    kinds = module.rope_type.items()
    return [(layer_type, f"{layer_type}_") for layer_type, kind in kinds if kind in _SWITCHING]


def _forward(module: Any, lengths: Tensor | int) -> Callable[..., tuple[Tensor, Tensor]]:
    plain = type(module).forward
    changing = dict(_layer_types(module))

    def forward(
        x: Tensor, position_ids: Tensor, layer_type: str | None = None
    ) -> tuple[Tensor, Tensor]:
        if layer_type not in changing:
            chosen = () if layer_type is None else (layer_type,)
            return plain(module, x, position_ids, *chosen)  # type: ignore[no-any-return]
        frequencies = _of_rows(module, lengths, layer_type, device=x.device)
        # In transformers' order and in float32, so that one row alone has the same bits.
        angles = position_ids[..., None].float() * frequencies
        both = torch.cat((angles, angles), dim=-1)
        scale = getattr(module, f"{changing[layer_type]}attention_scaling")
        return (both.cos() * scale).to(x.dtype), (both.sin() * scale).to(x.dtype)

    return forward


def _of_rows(
    module: Any, lengths: Tensor | int, layer_type: str | None, *, device: torch.device
) -> Tensor:
    """Return (d / 2,) inverse frequencies for one length, (T, d / 2) for one a token."""
    if isinstance(lengths, int):
        return _frequencies(module, lengths, layer_type).to(device)
    distinct, place = torch.unique(lengths, return_inverse=True)
    table = torch.stack([_frequencies(module, int(n), layer_type) for n in distinct.tolist()])
    return table.to(device)[place.to(device)]


def _frequencies(module: Any, length: int, layer_type: str | None) -> Tensor:
    kind = module.rope_type if layer_type is None else module.rope_type[layer_type]
    cpu = torch.device("cpu")
    with cpu:  # there transformers computes the first factors, too; a plan has meta as default
        found, _ = ROPE_INIT_FUNCTIONS[kind](
            module.config, cpu, seq_len=length, layer_type=layer_type
        )
    return found.float()


def _switch(config: PreTrainedConfig, kind: str, parameters: dict[str, Any]) -> int:
    if kind == "dynamic":
        return int(config.max_position_embeddings)
    original = parameters.get("original_max_position_embeddings")
    return int(original or config.max_position_embeddings)


def _parameters(config: PreTrainedConfig) -> dict[str, dict[str, Any]]:
    """Return the rope parameters of a config, by layer type where they are listed so."""
    values: dict[str, Any] = getattr(config.get_text_config(), "rope_parameters", None) or {}
    nested = {name: inner for name, inner in values.items() if isinstance(inner, dict)}
    return nested or {"": values}


def _name(config: PreTrainedConfig) -> str:
    return str(config.name_or_path or config.model_type)
