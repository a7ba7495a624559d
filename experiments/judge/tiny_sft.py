"""Train a two-layer model from nothing to summarise the posts, badly: what online DPO starts from.

    python experiments/judge/tiny_sft.py FOLDER

Its targets are noisy: each of the four facts of a summary is left out or replaced in a third of
the cases, and filler is added. So it knows how summaries look, not what makes one good.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch
from posts import ACTIONS, NAMES, REASONS, RELATIONS, post, words_of
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }} {% if m['role'] == 'assistant' %}</s>{% else %}"
    "<sep> {% endif %}{% endfor %}"
)
STEPS, ROWS, LENGTH = 300, 16, 96


def noisy_summary(number: int, draw: random.Random) -> str:
    """Return a summary of post `number` in which facts are missing, wrong or drowned."""
    fact = words_of(number, seed=0)
    pools = {"name": NAMES, "other": NAMES, "action": tuple(ACTIONS), "reason": tuple(REASONS)}
    for key, pool in pools.items():
        if draw.random() < 1 / 3:
            fact[key] = draw.choice(pool)
    said = [fact[key] for key in ("name", "other", "action", "reason") if draw.random() > 0.25]
    said += draw.choices(RELATIONS, k=draw.randint(0, 6))
    draw.shuffle(said)
    return " ".join(said)


def main(folder: Path) -> None:
    """Train for a minute or two and write the model."""
    draw = random.Random(0)
    torch.manual_seed(0)
    texts = [post(i, seed=seed)[key] for seed, n in ((0, 400), (1, 64)) for i in range(n)
             for key in ("prompt", "answer")]  # fmt: skip
    splitter = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    found = {w for text in texts for w, _ in splitter.pre_tokenize_str(text)}
    found |= {*NAMES, *RELATIONS, *ACTIONS, *REASONS}
    vocabulary = {w: i for i, w in enumerate(["<pad>", "</s>", "<sep>", *sorted(found)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = splitter
    tokenizer.add_special_tokens(["<pad>", "</s>", "<sep>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<pad>"
    )
    fast.chat_template = _TEMPLATE
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256,
        pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    for step in range(STEPS):
        ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
        labels = torch.full((ROWS, LENGTH), -100)
        for row in range(ROWS):
            number = draw.randrange(400)
            asked = fast(post(number, seed=0)["prompt"] + " <sep>").input_ids
            said = fast(noisy_summary(number, draw) + " </s>").input_ids
            both = (asked + said)[:LENGTH]
            ids[row, : len(both)] = torch.tensor(both)
            labels[row, len(asked) : len(both)] = torch.tensor(both[len(asked) :])
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(step, f"{float(loss):.3f}", flush=True)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
