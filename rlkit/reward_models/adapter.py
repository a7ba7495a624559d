"""This module is a reward model without weights of its own: a second LoRA and a head.

Both compute on the frozen base of the policy. The folder holds the adapter in PEFT's format and
the head as safetensors. Its record has the score of one text, by which a wrong base is noticed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlkit.models.families import backbone_of
from rlkit.policy.lora import LoRA
from rlkit.policy.lora_files import load_adapter, save_adapter
from rlkit.reward_models.batches import LinearHead, at_last_token, score_rows
from rlkit.reward_models.inputs import RowMaker
from rlkit.reward_models.options import ADAPTER_RECORD, ChatFormat, EndToken
from rlkit.runtime.files import published

HEAD = "reward_head.safetensors"
_PROBE = ("What is the capital of France?", "Paris is the capital of France.")
_TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class SharedBase:
    """This is what a policy lends: its model, its hooks for adapters and its tokenizer."""

    model: PreTrainedModel
    lora: LoRA
    tokenizer: PreTrainedTokenizerBase
    location: str
    """The folder or hub id of the model."""

    @property
    def device(self) -> torch.device:
        return self.model.device


@dataclass(frozen=True, kw_only=True)
class RewardAdapter:
    """These are the tensors of a reward model on a shared base."""

    adapter: Mapping[str, Tensor]
    head: LinearHead

    def scores(self, base: SharedBase, rows: list[list[int]], *, max_tokens: int) -> list[float]:
        """Return the score of each row of token ids."""
        # The factors are made once for all batches: torch would make them again for each.
        score = partial(at_last_token, backbone_of(base.model), self.head)
        with torch.no_grad(), base.lora.active(self.adapter):
            return score_rows(rows, score, max_tokens=max_tokens, pad_id=0, device=base.device)

    def probe(self, base: SharedBase) -> float:
        """Return the score of a fixed text, by which another base is told apart."""
        (row,) = [row_maker(base.tokenizer, max_length=2048).of_texts(*_PROBE)]
        return self.scores(base, [row], max_tokens=len(row))[0]


def row_maker(tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> RowMaker:
    """Return the rows of an adapter's reward model: by the base's own template."""
    return RowMaker(
        tokenizer=tokenizer,
        chat=ChatFormat.own,
        eos=EndToken.as_sampled,
        max_length=max_length,
    )


def save_reward_adapter(
    folder: Path, found: RewardAdapter, base: SharedBase, *, record: Mapping[str, object]
) -> None:
    """Write the folder of a reward model; `record` says how it was trained.

    Args:
        folder: The folder, which must not exist.
        found: The tensors.
        base: The base that they were trained on.
        record: JSON values for `reward_model.json`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with published(folder) as scratch:
        save_adapter(scratch, base.lora, found.adapter, base_model=base.location)
        tensors = {"weight": found.head.weight, "bias": _bias(found.head)}
        save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, scratch / HEAD)
        probe = found.probe(base)
        text = json.dumps({"version": 1, "probe": probe, **record}, indent=2)
        (scratch / ADAPTER_RECORD).write_text(text + "\n")


def load_reward_adapter(key: str, source: str, base: SharedBase) -> RewardAdapter:
    """Return the reward model in a folder, for a base that is the one it was trained on.

    Args:
        key: Names the options in messages.
        source: The folder.
        base: What the policy lends.

    Raises:
        ValueError: The folder does not fit the base or cannot be read, with one line.
    """
    folder = Path(source).expanduser()
    try:
        record: dict[str, Any] = json.loads((folder / ADAPTER_RECORD).read_text())
        head = load_file(folder / HEAD)
        expected = float(record["probe"])
        adapter = load_adapter(folder, base.lora, device=base.device)
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{key}.source must fit the policy's model, got {source}: {reason}"
        ) from error
    found = RewardAdapter(
        adapter={name: tensor.detach() for name, tensor in adapter.items()},
        head=LinearHead(head["weight"].to(base.device), head["bias"].to(base.device)),
    )
    got = found.probe(base)
    if not abs(got - expected) <= _TOLERANCE * (1.0 + abs(expected)):
        raise ValueError(
            f"{key}.source must have been trained on the policy's base, got {source}, which gives "
            f"a known text {got:.4g} there and gave it {expected:.4g}"
        )
    return found


def _bias(head: LinearHead) -> Tensor:
    return torch.zeros(1) if head.bias is None else head.bias
