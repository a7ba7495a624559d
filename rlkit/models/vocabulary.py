"""Check that tokenizer and model fit: a token id needs a row of the embedding.

Some published tokenizers have more tokens than their model has rows. Examples are an image token of
a text model (Gemma 3), an added `[PAD]`, and tokens that were added without resizing. Such a token
in a prompt is an index error, on CUDA a failed assertion that ends the process. It can never be
sampled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN = 3


def pad_id(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> int:
    """Return an id to pad batches with: the tokenizer's own if it has a row, its end token's, or 0.

    Padding is masked and never read; a model needs no pad token for training.
    """
    wanted = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((int(i) for i in wanted if i is not None and 0 <= i < num_rows), 0)


def with_rows(ids: Iterable[int], num_rows: int) -> frozenset[int]:
    """Return those of `ids` that the model can sample."""
    return frozenset(i for i in ids if 0 <= i < num_rows)


def without_rows(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> dict[int, str]:
    """Return the tokens that have no row, by id, in their order."""
    vocabulary = tokenizer.get_vocab()
    return dict(sorted((i, token) for token, i in vocabulary.items() if i >= num_rows))


def check_ids(
    ids: Sequence[int], num_rows: int, *, where: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise ValueError, in one line, when a token of a prompt has no row in the embedding.

    Args:
        ids: The token ids of the prompt.
        num_rows: The rows of the embedding, >= 1.
        where: The prompt's name in the message: `prompt 3`.
        tokenizer: Names the token in the message.

    Raises:
        ValueError: The first id that is out of range, with its token.
    """
    wrong = next((i for i in ids if not 0 <= i < num_rows), None)
    if wrong is not None:
        token = tokenizer.convert_ids_to_tokens(wrong) if wrong >= 0 else None
        raise ValueError(
            f"{where} must have token ids below {num_rows}, the rows of the model's embedding, got "
            f"{wrong} ({token!r}): the tokenizer has more tokens than the model"
        )


def vocabulary_notes(
    tokenizer: PreTrainedTokenizerBase, num_rows: int, stop_ids: frozenset[int]
) -> tuple[str, ...]:
    """Return a line for each thing that a user would not expect; nothing where all fits.

    Args:
        tokenizer: The tokenizer of the model.
        num_rows: The rows of the model's embedding, >= 1.
        stop_ids: The ids that were found to end a completion, with rows or without.
    """
    notes = []
    if missing := without_rows(tokenizer, num_rows):
        shown = ", ".join(f"{token!r} {i}" for i, token in list(missing.items())[:_SHOWN])
        notes.append(
            f"tokenizer: {len(missing)} tokens have no row in the model's embedding of {num_rows} "
            f"({shown}{', ...' if len(missing) > _SHOWN else ''}); a prompt with one is refused"
        )
    if never := sorted(stop_ids - with_rows(stop_ids, num_rows)):
        notes.append(f"stop tokens: {never} left out, as the model cannot sample them")
    if not with_rows(stop_ids, num_rows):
        notes.append(
            "stop tokens: none, neither in the tokenizer nor in the generation config; every "
            "completion runs to task.max_completion_length unless task.stop ends it"
        )
    pad = pad_id(tokenizer, num_rows)
    if pad not in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        notes.append(f"pad token: id {pad}, as the tokenizer names none with a row; it is masked")
    return tuple(notes)
