"""The sentences of docstrings, comments and pages, and whether each has a verb.

The part-of-speech tagger is HanTa (Wartena 2019): its English model of 1.7 MB lies in the wheel,
and it tags a sentence in half a millisecond. Its tags are those of the British National Corpus
(C5).
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from typing import Any

REFERENCE = re.compile(r"\[\w+\]: \S+")  # where a link of the page leads
SECTION = re.compile(r"(Args|Returns|Raises|Yields|Attributes|Examples?|Notes?|References?):")
ENTRY = re.compile(r"\*{0,2}\w[\w.\[\], ]*( \([^)]*\))?:(\s|$)")
ITEM = re.compile(r"([-*+]|\d+[.)])\s")
ROW = re.compile(r"\S+( \S+)*\s{2,}\S")
SENTENCE_END = re.compile(r"(?<=[.?!])[)\"'*]*\s+|(?<=:)\n")
FENCE = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
FRONT_MATTER = re.compile(r"\A---\n.*?^---$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"``.+?``|`[^`]+`|\$[^$]+\$", re.DOTALL)
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
WORD = re.compile(r"[a-z]*[a-z]{2}[a-z]*|\b[ai]\b", re.IGNORECASE)
# The full stop of an abbreviation ends no sentence.
ABBREVIATION = re.compile(r"\b(e\.g|i\.e|Dr|cf|vs|etc|al|eq|Fig|Sec)\.", re.IGNORECASE)
TOKEN = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*|\d+|[^\w\s]")
SOURCE = re.compile(r"(Sources?|References?|Dimensions|Shapes?): |.*arXiv")
FORMULA = re.compile(r" [-+*]?= | -> |^def |\w/\w.*\{")
# What begins an object: a, three, its, this, it, to.
OBJECT = ("AT0", "CRD", "DPS", "DT0", "PNP", "TO0")
# Verbs of the field that the tagger knows as nouns only.
VERBS = {
    *("block", "cap", "clip", "fold", "pack", "pad", "pair", "parse", "patch", "print", "probe"),
    *("quantise", "render", "resume", "sample", "schedule", "score", "span", "stream", "wrap"),
}
# A sentence may begin with the name of its section: `Raises ValueError when ...`.
OF_SECTIONS = ("Raises", "Returns", "Yields")
FINITE = re.compile(r"V.[BDZ]|VM0|V.I")


def blocks(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a docstring or page, and whether each is running text.

    List items, table rows and the entries of a section may name a thing without a verb.
    """
    block: list[str] = []
    runs = True
    section: int | None = None
    for line in text.splitlines():
        bare = line.strip()
        indent = len(line) - len(line.lstrip())
        if bare.startswith((">>>", "$ ")) or REFERENCE.fullmatch(bare):
            continue
        if SECTION.fullmatch(bare):
            section = indent
        elif bare and section is not None and indent <= section:
            section = None
        entry = section is not None and indent == section + 4 and ENTRY.match(bare)
        item = bool(ITEM.match(bare) or ROW.match(bare) or bare.startswith(("#", "|", "<")))
        if not bare or SECTION.fullmatch(bare) or item or entry:
            yield "\n".join(block), runs
            block, runs = [], not item and section is None
        if bare.startswith(("#", "|", "<", ":::")):
            continue
        if bare and not SECTION.fullmatch(bare):
            block.append(bare)
    yield "\n".join(block), runs


def sentences(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the sentences of a text without its code, and whether each is of running text."""
    plain = CODE.sub(
        "0", LINK.sub(r"\1", FENCE.sub("", FRONT_MATTER.sub("", inspect.cleandoc(text))))
    )
    plain = ABBREVIATION.sub(lambda match: match[0].replace(".", ""), plain)
    for block, runs in blocks(plain):
        for sentence in SENTENCE_END.split(block):
            if sentence.strip():
                yield " ".join(sentence.split()), runs


def words(sentence: str) -> int:
    """Return how many of the words between the spaces hold letters as words do."""
    return sum(1 for word in sentence.split() if WORD.search(word))


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield the first line and the text of every block of whole-line comments."""
    block: list[str] = []
    start = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or token.line[: token.start[1]].strip():
            continue
        if block and token.start[0] != last + 1:
            yield start, "\n".join(block)
            block = []
        start = start if block else token.start[0]
        last = token.start[0]
        block.append(token.string.lstrip("# "))
    if block:
        yield start, "\n".join(block)


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of the docstring of a module and of all within."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield getattr(node, "lineno", 1), ast.get_docstring(node) or ""


@cache
def tagger() -> Any:
    from HanTa.HanoverTagger import HanoverTagger

    return HanoverTagger("morphmodel_en.pgz")


def tags(sentence: str) -> list[tuple[str, str]]:
    """Return (word, part of speech) of a sentence."""
    found = TOKEN.findall(sentence.replace("*", "").replace("_", ""))
    return [(word, tag) for word, _, tag in tagger().tag_sent(found)]


def fault(sentence: str) -> str | None:
    """Return what a sentence lacks, its subject or its verb; None for a whole one.

    An imperative has no subject, a reference to a source needs no verb, and `=` is one.
    """
    if SOURCE.match(sentence) or FORMULA.search(sentence):
        return None
    found = tags(sentence)
    if not found:
        return None
    if found[0][1] in ("VVZ", "VBZ", "VHZ", "VDZ") and found[0][0] not in OF_SECTIONS:
        return None if sentence.endswith("?") else "no subject"
    if any(FINITE.fullmatch(tag) for _, tag in found) or is_base(found[0][0]):
        return None
    after = [*(tag for _, tag in found[1:]), "PUN", "PUN"]
    if any(_stands_as_verb(found[i - 1], found[i], after[i]) for i in range(1, len(found))):
        return None
    if (
        found[0][0] in ("This", "A", "An")
        and len(found) > 2
        and is_base(found[2][0].removesuffix("s"))
    ):
        return None
    return "no verb"


def _stands_as_verb(before: tuple[str, str], word: tuple[str, str], after: str) -> bool:
    """Return whether the tagger took a verb for a noun: `it samples`, `a step costs a tenth`."""
    text, tag = word
    if not tag.startswith(("N", "AJ", "VVN")):
        return False
    tag_before, takes_object = before[1], after in OBJECT
    if len(text) > 1 and text.endswith("s") and is_base(text.removesuffix("s")):
        if tag_before in ("PNP", "AV0", "XX0", "PNI"):
            return True
        if before[0] == "0" and after != "PRF":  # code stands for a name
            return True
        if tag_before in ("DT0", "CRD", "ORD"):
            return takes_object or after.startswith(("N", "PRP"))
        return takes_object and tag_before.startswith("N")
    return is_base(text) and (
        tag_before in ("NN2", "PNP", "PNI", "AV0", "XX0")
        or (takes_object and tag_before.startswith(("N", "CRD")))
        or before[0].lower() in ("both", "all", "these", "those")
    )


@cache
def is_base(word: str) -> bool:
    """Return whether a word alone can be the base form of a verb."""
    found = tagger().tag_word(word.lower(), cutoff=30)
    return word.lower() in VERBS or any(tag in ("VVB", "VVI") for tag, _ in found)
