"""Write a tokenizer into a GGUF file, so that llama.cpp finds the same tokens.

llama.cpp has its own tokenizers and names the rules that split a text before BPE. The name is found
here by the structure of the tokenizer, not by a hash of its output. So a tokenizer with added
tokens is known as well. The proof tokenises the held-out prompts with both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from rlkit.models.special import Stops

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def add_vocabulary(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, stops: Stops, *, num_rows: int
) -> None:
    """Write tokens, merges, special tokens and the chat template.

    Args:
        writer: The file.
        tokenizer: The tokenizer, with the chat template that the run used.
        stops: The stop tokens of the run.
        num_rows: Rows of the embedding; ids without a token get a name.

    Raises:
        ValueError: llama.cpp has no tokenizer of this kind.
    """
    spec = spec_of(tokenizer)
    model = spec["model"]
    if model["type"] != "BPE":
        raise _unknown(f"a {model['type']} model")
    tokens, types = _tokens(tokenizer, spec, num_rows)
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores(_scores(tokens, model["merges"]))
        writer.add_token_types(types)
        writer.add_add_space_prefix(_adds_space(spec))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_name(spec))
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges(
            [m if isinstance(m, str) else " ".join(m) for m in model["merges"]] or [""]
        )
        writer.add_add_space_prefix(False)
    _add_special(writer, tokenizer, stops)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def spec_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the content of tokenizer.json; raises ValueError when there is no fast tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unknown(f"a tokenizer of {type(tokenizer).__name__}")
    spec: dict[str, Any] = json.loads(backend.to_str())
    return spec


def pre_name(spec: Mapping[str, Any]) -> str:
    """Return llama.cpp's name of the rules that split a text before byte-level BPE."""
    steps = _steps(spec.get("pre_tokenizer"))
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        pattern = steps[0]["pattern"].get("Regex", "")
        if pattern == _QWEN2:
            return "qwen2"
        if pattern == _LLAMA3:
            # Both names split alike; the first takes whole words from the vocabulary.
            return "llama-bpe" if spec["model"].get("ignore_merges") else "dbrx"
    raise _unknown(f"the pre-tokenizer {json.dumps(spec.get('pre_tokenizer'))[:120]}")


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether plain text gets a beginning-of-sequence token in front."""
    ids = tokenizer.encode("a")
    return bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def _unknown(what: str) -> ValueError:
    return ValueError(f"--to gguf must have a tokenizer that llama.cpp has, got {what}")


def _steps(pre: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if pre is None:
        return []
    return list(pre["pretokenizers"]) if pre["type"] == "Sequence" else [pre]


def _tokens(
    tokenizer: PreTrainedTokenizerBase, spec: Mapping[str, Any], num_rows: int
) -> tuple[list[str], list[TokenType]]:
    added = {t["id"]: t for t in spec.get("added_tokens", [])}
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    unknown = spec["model"].get("unk_token")
    tokens, types = [], []
    for i in range(num_rows):
        token = by_id.get(i)
        if token is None:
            tokens.append(f"[PAD{i}]")
            types.append(TokenType.UNUSED)
            continue
        kind = TokenType.NORMAL
        if i in added:
            kind = TokenType.CONTROL if added[i]["special"] else TokenType.USER_DEFINED
        elif spec["model"].get("byte_fallback") and _BYTE.fullmatch(token):
            kind = TokenType.BYTE
        if token == unknown and spec["model"].get("byte_fallback"):
            kind = TokenType.UNKNOWN
        tokens.append(token)
        types.append(kind)
    return tokens, types


def _scores(tokens: Sequence[str], merges: Sequence[Any]) -> list[float]:
    """Return scores that make llama.cpp merge in the order of `merges`: the earliest is highest."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        pair = merge.split(" ", 1) if isinstance(merge, str) else merge
        ranks.setdefault("".join(pair), rank)
    # A token that no merge makes is never made: below all others.
    return [-float(ranks.get(token, len(ranks))) for token in tokens]


def _adds_space(spec: Mapping[str, Any]) -> bool:
    text = json.dumps([spec.get("normalizer"), spec.get("pre_tokenizer")])
    return (
        '"Prepend"' in text
        or '"prepend_scheme": "first"' in text
        or ('"prepend_scheme": "always"' in text)
    )


def _add_special(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, stops: Stops) -> None:
    for token_id, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if token_id is not None:
            add(int(token_id))
    further = sorted(stops.ids - {tokenizer.eos_token_id})
    for token_id, add in zip(
        further, (writer.add_eot_token_id, writer.add_eom_token_id), strict=False
    ):
        add(token_id)
    writer.add_add_bos_token(adds_bos(tokenizer))
    writer.add_add_eos_token(False)
