"""This module rewards the language of a text: its script, or what a classifier finds."""

from __future__ import annotations

import functools
import unicodedata
from typing import TYPE_CHECKING, Any

from rlkit.rewards.load import per_sample
from rlkit.runtime.distribution import lacks

if TYPE_CHECKING:
    from rlkit.types import Completion

_HAN = "CJK"


@per_sample
def script(completion: Completion, *, name: str = "latin") -> float | None:
    """Return the share of letters that belong to a script: latin, cyrillic, han, arabic, ...

    Digits, signs and spaces do not count. The name is the first word of the letters' Unicode names;
    `han` stands for CJK. A text without a letter gives None.
    """
    wanted = _HAN if name.lower() == "han" else name.upper()
    letters = [c for c in completion.text if c.isalpha()]
    if not letters:
        return None
    return sum(_script_of(c) == wanted for c in letters) / len(letters)


@per_sample
def language(
    completion: Completion, *, code: str = "en", among: list[str] | None = None
) -> float | None:
    """Return 1.0 when a classifier takes the text for a language, else 0.0.

    The classifier is py3langid (extra `rlkit-lm[language]`), which knows 97 languages. It guesses
    on texts of a few words: use `among` to name those that may come at all.

    Args:
        completion: The sample.
        code: The ISO 639-1 code of the language that is wanted.
        among: Codes between which the classifier chooses; null = all.

    Returns:
        1.0 or 0.0; None for a text without a letter.

    Raises:
        ValueError: A code is unknown to the classifier.
    """
    if not any(c.isalpha() for c in completion.text):
        return None
    codes = tuple(sorted({code, *among})) if among else ()
    classifier = _classifier(code, codes)
    return float(classifier.classify(completion.text)[0] == code)


@functools.lru_cache(maxsize=8)
def _classifier(code: str, among: tuple[str, ...]) -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ModuleNotFoundError as error:
        raise lacks("py3langid", __name__) from error
    found = LanguageIdentifier.from_model_file(MODEL_FILE)
    known = sorted(map(str, found.labels))
    for wanted in (code, *among):
        if wanted not in known:
            raise ValueError(f"code must be one of {', '.join(known)}, got {wanted}")
    if among:
        found.set_languages(list(among))
    return found


def _script_of(character: str) -> str:
    return unicodedata.name(character, "").split(" ")[0].split("-")[0]
