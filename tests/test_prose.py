"""The docstrings of rlkit and of the examples are made of short, whole sentences."""

from __future__ import annotations

import ast
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
MOST_WORDS, MANY_PARAMETERS = 25, 4

# A docstring that begins with one of these names a thing and says nothing about it.
NO_SENTENCE = {"what", "of", "where", "as", "which", "whether", "how"}

# Room -> the violations it still has. A number may only go down: the test fails when a room has
# more or fewer than it says here. A room that is not listed has none.
STILL_ALLOWED: dict[str, int] = {}

SECTION = re.compile(r"(Args|Returns|Raises|Yields|Attributes|Examples?|Notes?|References?):")
ENTRY = re.compile(r"\*{0,2}\w[\w.\[\], ]*( \([^)]*\))?:(\s|$)")
ITEM = re.compile(r"([-*+]|\d+[.)])\s")
ROW = re.compile(r"\S+( \S+)*\s{2,}\S")
SENTENCE_END = re.compile(r"(?<=[.?!])[)\"']?\s+|(?<=:)\n")
CODE = re.compile(r"``.+?``|`[^`]+`|\$[^$]+\$", re.DOTALL)
WORD = re.compile(r"[a-z]*[a-z]{2}[a-z]*|\b[ai]\b", re.IGNORECASE)
# The full stop of an abbreviation ends no sentence.
ABBREVIATION = re.compile(r"\b(e\.g|i\.e|cf|vs|etc|al|Eq|Fig|Sec)\.")


def blocks(text: str) -> Iterator[str]:
    """Yield the paragraphs, list items, table rows and section entries of a docstring."""
    block: list[str] = []
    section: int | None = None
    fenced = False
    for line in text.splitlines():
        bare = line.strip()
        indent = len(line) - len(line.lstrip())
        if bare.startswith("```"):
            fenced = not fenced
            continue
        if fenced or bare.startswith((">>>", "$ ")):
            continue
        if SECTION.fullmatch(bare):
            section = indent
        elif bare and section is not None and indent <= section:
            section = None
        entry = section is not None and indent == section + 4 and ENTRY.match(bare)
        if not bare or SECTION.fullmatch(bare) or ITEM.match(bare) or ROW.match(bare) or entry:
            yield "\n".join(block)
            block = []
        if bare and not SECTION.fullmatch(bare):
            block.append(bare)
    yield "\n".join(block)


def long_sentences(text: str) -> list[str]:
    """Return the sentences of a docstring that have more than `MOST_WORDS` words.

    Code spans and formulas count nothing, and a compound with hyphens counts one.
    """
    plain = CODE.sub("0", inspect.cleandoc(text))
    plain = ABBREVIATION.sub(lambda match: match[0].replace(".", ""), plain)
    sentences = [s for block in blocks(plain) for s in SENTENCE_END.split(block)]
    return [s for s in sentences if words(s) > MOST_WORDS]


def words(sentence: str) -> int:
    """Return how many of the words between the spaces hold letters as words do."""
    return sum(1 for word in sentence.split() if WORD.search(word))


def wrong(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the fault of every violation of a file."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            line = getattr(node, "lineno", 1)
            text = ast.get_docstring(node) or ""
            first = re.match(r"\w+", text)
            if first and first[0].lower() in NO_SENTENCE:
                yield line, f"the docstring begins with {first[0]!r}"
            for sentence in long_sentences(text):
                yield line, f"{words(sentence)} words in a sentence: {' '.join(sentence.split())}"
    if not any(part.startswith("_") and part != "__init__.py" for part in path.parts[-2:]):
        for function in public(tree):
            parameters = parameter_names(function)
            has_section = re.search(r"^Args:$", ast.get_docstring(function) or "", re.MULTILINE)
            if len(parameters) >= MANY_PARAMETERS and not has_section:
                yield function.lineno, f"{function.name} has {len(parameters)} parameters, no Args:"


def public(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the public functions of a module, and the public methods of its public classes."""
    for child in ast.iter_child_nodes(node):
        name = getattr(child, "name", "")
        if isinstance(child, ast.ClassDef) and not name.startswith("_"):
            yield from public(child)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not (
            name.startswith("_")
            or "overload" in {getattr(d, "id", "") for d in child.decorator_list}
        ):
            yield child


def parameter_names(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Return the parameters that a caller passes."""
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls", "ctx")]


def files() -> Iterator[tuple[str, Path]]:
    """Yield (room, file) of every module of rlkit, through its links, and of the examples."""
    for folder in (*sorted((ROOT / "rlkit").iterdir()), ROOT / "examples"):
        if folder.suffix == ".py":
            yield folder.stem, folder
        for path in sorted(folder.resolve().rglob("*.py")):
            yield folder.name, path


def test_no_room_has_more_or_fewer_violations_than_it_says() -> None:
    found = [
        (room, f"{path.relative_to(ROOT)}:{line}: {fault}")
        for room, path in files()
        for line, fault in wrong(path)
    ]
    counts = dict(Counter(room for room, _ in found))
    off = {
        room for room in {*counts, *STILL_ALLOWED} if counts.get(room) != STILL_ALLOWED.get(room)
    }
    lines = [line for room, line in found if room in off]
    assert not off, "\n".join([f"{ ({r: counts.get(r, 0) for r in sorted(off)}) } found", *lines])


def test_a_long_sentence_is_found_and_a_short_one_is_not() -> None:
    many = " ".join(["word"] * 26)
    few = " ".join(["word"] * 25)
    assert long_sentences(f"{many}.") == [f"{many}."]
    assert not long_sentences(f"{few}. {few}? {few}! {few}:\n{few}\n\n{few}")
    assert not long_sentences(f"{few}\n- {few}\n- {few}")
    assert not long_sentences(f"{few}:\n    one    {few[5:]}\n    two    {few[5:]}")
    assert not long_sentences(f"{few} `{many}` a - b + 1 = 2")[1:]
    assert len(long_sentences(f"{few} more {few}")) == 1
    # Every entry of a section counts for itself, and an abbreviation ends no sentence.
    assert not long_sentences(
        f"Short.\n\nArgs:\n    a: {few[5:]}\n    b: {few[5:]}\n\nReturns:\n    {few}"
    )
    assert len(long_sentences(f"Short.\n\nArgs:\n    a: {many}")) == 1
    assert len(long_sentences(f"{few}, e.g. {few}")) == 1


def test_first_words_and_missing_sections_are_found(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        '"""What it is."""\n\n'
        'def wide(a, b, *, c, d):\n    """Add."""\n\n'
        'def told(a, b, c, d):\n    """Add.\n\n    Args:\n        a: One.\n    """\n\n'
        'def _hidden(a, b, c, d):\n    """Add."""\n\n'
        'class Box:\n    """Whatever it holds."""\n\n'
        '    def narrow(self, a, b, c):\n        """Add."""\n'
    )
    assert list(wrong(path)) == [
        (1, "the docstring begins with 'What'"),
        (3, "wide has 4 parameters, no Args:"),
    ]
