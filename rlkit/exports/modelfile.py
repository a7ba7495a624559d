"""Write the `Modelfile` with which Ollama runs a GGUF file as the run did.

Ollama has templates in Go's language. The chat template, in Jinja's, is asked how it renders marked
conversations. Most templates put a fixed text before and after each turn, and then a Go template of
these texts renders the same. Where it would not, the file has no TEMPLATE and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from rlkit.exports.gguf.vocabulary import adds_bos
from rlkit.exports.trained import TrainedPolicy

_SYSTEM, _FIRST, _REPLY, _SECOND = (f"rlkit-mark-{i}" for i in range(4))
_ROLES = ("system", "user", "assistant")
_Turn = tuple[str, str]


class Turns(NamedTuple):
    """The texts that a chat template puts around turns."""

    opening: str
    """Before the first turn of a conversation without a system message."""
    before: dict[str, str]
    """By role."""
    after: dict[str, str]
    reply: str
    """After the last turn, where the model goes on."""

    def render(self, conversation: Sequence[_Turn]) -> str:
        """Return the text of a conversation, as the Go template renders it."""
        opening = "" if any(role == "system" for role, _ in conversation) else self.opening
        turns = [self.before[role] + text + self.after[role] for role, text in conversation]
        return opening + "".join(turns) + self.reply


def turns_of(tokenizer: PreTrainedTokenizerBase) -> Turns | None:
    """Return the texts around turns; None where the chat template is more than such texts."""
    if not isinstance(tokenizer.chat_template, str):
        return None
    bos = tokenizer.bos_token if adds_bos(tokenizer) else None

    def apply(conversation: Sequence[_Turn], *, reply: bool) -> str:
        messages = [{"role": role, "content": text} for role, text in conversation]
        text = str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=reply)
        )
        # Ollama puts this token in front itself.
        return text.removeprefix(str(bos)) if bos else text

    system, first = ("system", _SYSTEM), ("user", _FIRST)
    answer, second = ("assistant", _REPLY), ("user", _SECOND)
    whole = (system, first, answer, second)
    try:
        turns = _read(apply)
        tried = (whole, (first,), (system, first), (first, answer, second))
        if any(turns.render(c) != apply(c, reply=True) for c in tried):
            return None
    except Exception:  # a template is a program of the model's author, with its own errors
        return None
    texts = (turns.opening, turns.reply, *turns.before.values(), *turns.after.values())
    return None if any("{{" in text or '"""' in text for text in texts) else turns


def _read(apply: Any) -> Turns:
    """Find the texts between the marks; raises ValueError where they are not where they should."""
    system, first = ("system", _SYSTEM), ("user", _FIRST)
    answer, second = ("assistant", _REPLY), ("user", _SECOND)
    text = apply((system, first, answer, second), reply=False)
    before_system, _, rest = text.partition(_SYSTEM)
    system_to_user, _, rest = rest.partition(_FIRST)
    user_to_reply, _, rest = rest.partition(_REPLY)
    reply_to_user, _, after_user = rest.partition(_SECOND)
    after_reply = apply((system, first, answer), reply=False).partition(_REPLY)[2]
    before_user = _without(reply_to_user, after_reply, at_end=False)
    alone = apply((first,), reply=False).partition(_FIRST)[0]
    return Turns(
        opening=_without(alone, before_user, at_end=True),
        before={
            "system": before_system,
            "user": before_user,
            "assistant": _without(user_to_reply, after_user, at_end=False),
        },
        after={
            "system": _without(system_to_user, before_user, at_end=True),
            "user": after_user,
            "assistant": after_reply,
        },
        reply=apply((first,), reply=True).removeprefix(apply((first,), reply=False)),
    )


def _without(text: str, part: str, *, at_end: bool) -> str:
    has = text.endswith(part) if at_end else text.startswith(part)
    if not has:
        raise ValueError("the texts around turns depend on other turns")
    return text.removesuffix(part) if at_end else text.removeprefix(part)


def go_template(turns: Turns) -> str:
    """Return the template in Go's language, for Ollama."""
    branches = "".join(
        f'{{{{ {"if" if i == 0 else "else if"} eq .Role "{role}" }}}}'
        f"{turns.before[role]}{{{{ .Content }}}}{turns.after[role]}"
        for i, role in enumerate(_ROLES)
    )
    opening = f"{{{{ if not .System }}}}{turns.opening}{{{{ end }}}}" if turns.opening else ""
    return f"{opening}{{{{ range .Messages }}}}{branches}{{{{ end }}}}{{{{ end }}}}{turns.reply}"


def modelfile(trained: TrainedPolicy, *, gguf: str) -> str:
    """Return the text of the Modelfile for the GGUF file of that name beside it."""
    lines = [f"FROM ./{gguf}"]
    turns = turns_of(trained.tokenizer)
    if turns is None:
        lines.append("# No TEMPLATE: the chat template inside the GGUF file has no simple form.")
    else:
        lines.append(f'TEMPLATE """{go_template(turns)}"""')
    sampling = trained.run.sampling
    lines += [
        f"PARAMETER temperature {sampling.temperature:g}",
        f"PARAMETER top_p {sampling.top_p:g}",
        f"PARAMETER top_k {sampling.top_k}",
        f"PARAMETER min_p {sampling.min_p:g}",
        # Ollama's own default punishes repetition, which no training here has seen.
        "PARAMETER repeat_penalty 1",
    ]
    if trained.task is not None:
        lines.append(f"PARAMETER num_predict {trained.task.max_completion_length}")
    lines += [f"PARAMETER stop {_quoted(text)}" for text in stop_texts(trained)]
    return "\n".join(lines) + "\n"


def stop_texts(trained: TrainedPolicy) -> list[str]:
    """Return all that ends a completion, as text: special tokens and strings."""
    ids = sorted(trained.stops.ids)
    tokens: list[str] = list(map(str, trained.tokenizer.convert_ids_to_tokens(ids)))
    return [*tokens, *trained.stops.strings]


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
