"""Small real tokenizers: byte-level BPE, so that any text has tokens and survives a round trip."""

from __future__ import annotations

import json

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_LIKE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CORPUS = ["the secret word is apple", "Q: max of 3, 9, 4\nA: 9", "user assistant system answer"]


def byte_level_tokenizer(
    *, adds_bos: bool = False, chat_template: str | None = CHATML
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 300 tokens; like Llama's it puts BOS first if `adds_bos`."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS, trainer)
    if adds_bos:
        bos = bpe.token_to_id("<|bos|>")
        bpe.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", bos)]
        )
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe, bos_token="<|bos|>", eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def byte_tokenizer(*specials: str, **options: str) -> PreTrainedTokenizerFast:
    """One token a byte, ids 0 to 255, then `specials`; `options` name them: eos_token and so on."""
    vocabulary = {
        c: i for i, c in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), *specials])
    }
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **options)  # type: ignore[no-untyped-call]


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """Four special tokens and the bytes of ASCII letters: no merges, no template, no pad token."""
    specials = ["<unk>", "<s>", "</s>", "<end>"]
    letters = [*"abcdefghijklmnopqrstuvwxyz#:.", "Ġ", "Ċ"]
    vocab = {token: i for i, token in enumerate(specials + letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def sentencepiece_like_tokenizer() -> PreTrainedTokenizerFast:
    """A BPE as Llama 2 has it: a space comes first, and odd characters are bytes."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    space = decoders.Replace("▁", " ")
    bpe.decoder = decoders.Sequence(
        [space, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))],
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyzQA0123456789,.:▁"),
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS, trainer)
    spec = json.loads(bpe.to_str())
    # The trainer calls all of these special; only the first three are.
    spec["added_tokens"] = spec["added_tokens"][:3]
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
    )
