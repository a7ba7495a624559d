"""This module brings answers into a form that math-verify reads, and compares those in words.

math-verify reads formulas. A gold answer may also be a price, a number with its unit, a set without
LaTeX, or a word. Each is rewritten here before it is parsed.
"""

from __future__ import annotations

import re

_CURRENCY = re.compile(r"(?:\\\$|[€£¥₹])\s*(?=[-+.\d])")
_UNIT = re.compile(
    r"(?P<number>[-+]?(?:\d[\d,]*)?\.?\d+(?:\s*/\s*\d+)?)\s+(?P<unit>[A-Za-z][A-Za-z. ]*[A-Za-z.])"
)
_MATHS = {"pi", "sqrt", "sin", "cos", "tan", "log", "ln", "exp", "mod", "or", "and", "to"}
_TEXT = re.compile(r"\s*\\?(?:text|mathrm|textbf|mbox)\{(?P<word>[^{}]*)\}\s*")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*[A-Za-z]")
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_GROUP = re.compile(r"(?P<open>[\[({])(?P<inner>[^\[\](){}=]+,[^\[\](){}=]+)(?P<close>[\])}])")


def plain_gold(gold: str) -> str:
    """Return a gold answer without what math-verify would read as a product of letters.

    A currency sign before a number goes, and so does a unit of words after one: `12 dollars` is 12.
    Braces without backslashes become those of a set.
    """
    text = _CURRENCY.sub("", gold.strip())
    match = _UNIT.fullmatch(text)
    if match and not _MATHS & set(match["unit"].lower().split()):
        return match["number"]
    return _as_latex(text) or text


def word_answer(gold: str) -> str | None:
    r"""Return the words of a gold answer in words, such as `\text{blue}` or `Monday`; else None."""
    match = _TEXT.fullmatch(gold.strip().strip("$"))
    word = match["word"] if match else gold
    word = word.strip()
    return word if len(word) > 1 and _WORDS.fullmatch(word) else None


def says(text: str, word: str) -> bool:
    r"""Return whether the answer of `text` is `word`, whatever the case.

    The answer is the last `\boxed{}`, else the first `<answer></answer>`, else the last line, of
    which what follows "answer is" counts.
    """
    return _bare(_stated(text)).casefold() == _bare(word).casefold()


def plain_text(text: str, gold: str) -> str:
    """Return a completion that math-verify reads: no currency sign, % plain, a list as LaTeX.

    Args:
        text: The completion.
        gold: The gold answer. Where it is a set, a tuple or an interval, the last such group of a
            text without a box is what counts.

    Returns:
        The text for math-verify.
    """
    text = _CURRENCY.sub("", text).replace("\\%", "%")
    if _as_latex(gold.strip().strip("$")) is None or "\\boxed" in text or "$" in text:
        return text
    groups = list(_GROUP.finditer(text))
    return f"${_as_latex(groups[-1][0])}$" if groups else text


def _as_latex(text: str) -> str | None:
    r"""Return `\{1, 2\}` for `{1, 2}`, a tuple or an interval as it stands; None for the rest."""
    match = _GROUP.fullmatch(text.replace("\\{", "{").replace("\\}", "}"))
    if match is None:
        return None
    left, right = (f"\\{b}" if b in "{}" else b for b in (match["open"], match["close"]))
    return f"{left}{match['inner']}{right}"


def _stated(text: str) -> str:
    if boxed := _BOXED.findall(text):
        return str(boxed[-1])
    if tagged := _TAGGED.search(text):
        return tagged[1]
    lines = [line for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    return re.split(r"answer(?: is|:)", last, flags=re.IGNORECASE)[-1]


def _bare(text: str) -> str:
    match = _TEXT.fullmatch(text.strip().strip("$*.!"))
    inner = match["word"] if match else text
    return " ".join(inner.strip().strip("$*.!:\"'").split())
