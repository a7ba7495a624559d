"""Docstrings, comments and pages are made of short, whole sentences, with subject and verb."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sentences import comments, docstrings, fault, sentences, words

ROOT = Path(__file__).parent.parent
MOST_WORDS, MANY_PARAMETERS = 25, 4

# A docstring that begins with one of these names a thing and says nothing about it.
NO_SENTENCE = {"what", "of", "where", "as", "which", "whether", "how"}

# Page -> the violations it still has. A number may only go down: the test fails when a page has
# more or fewer than it says here. What is not listed has none.
STILL_ALLOWED: dict[str, int] = {}


def wrong(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the fault of every violation of a module."""
    source = path.read_text()
    tree = ast.parse(source)
    for line, text in docstrings(tree):
        first = re.match(r"\w+", text)
        if first and first[0].lower() in NO_SENTENCE:
            yield line, f"the docstring begins with {first[0]!r}"
        yield from ((line, said) for said in faults(text))
    for line, text in comments(source):
        yield from ((line, said) for said in faults(text))
    if not any(part.startswith("_") and part != "__init__.py" for part in path.parts[-2:]):
        for function in public(tree):
            parameters = parameter_names(function)
            has_section = re.search(r"^Args:$", ast.get_docstring(function) or "", re.MULTILINE)
            if len(parameters) >= MANY_PARAMETERS and not has_section:
                yield function.lineno, f"{function.name} has {len(parameters)} parameters, no Args:"


def faults(text: str) -> Iterator[str]:
    """Yield what is wrong with the sentences of a text."""
    for sentence, runs in sentences(text):
        if words(sentence) > MOST_WORDS:
            yield f"{words(sentence)} words in a sentence: {sentence}"
        elif runs and words(sentence) > 1 and (lacks := fault(sentence)):
            yield f"{lacks} in a sentence: {sentence}"


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


def pages() -> Iterator[Path]:
    yield from (
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "experiments").rglob("*.md")),
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
    )


def check(found: list[tuple[str, str]], allowed: dict[str, int]) -> None:
    """Compare the (place, fault) that were found with how many each place may have."""
    counts = Counter(place for place, _ in found)
    off = {place for place in {*counts, *allowed} if counts[place] != allowed.get(place, 0)}
    lines = [line for place, line in found if place in off]
    assert not off, "\n".join([f"{ ({p: counts[p] for p in sorted(off)}) } found", *lines])


def test_no_room_has_more_or_fewer_violations_than_it_says() -> None:
    found = [
        (room, f"{path.relative_to(ROOT)}:{line}: {said}")
        for room, path in files()
        for line, said in wrong(path)
    ]
    check(found, {})


def test_no_page_has_more_or_fewer_violations_than_it_says() -> None:
    found = [
        (str(page.relative_to(ROOT)), f"{page.relative_to(ROOT)}: {said}")
        for page in pages()
        for said in faults(page.read_text())
    ]
    check(found, STILL_ALLOWED)


@pytest.mark.parametrize(
    "sentence",
    [
        "It samples at the training temperature.",
        "A meter scores samples of the policy.",
        "`generate` samples completions.",
        "Load a base model and its tokenizer, frozen, on one device.",
        "A step of vLLM costs 3 ms of Python, and little of it changes.",
        "Does vLLM sample from the policy?",
        "Raises ValueError when the value does not fit.",
        "H = -sum p log p.",
        "Source: Ding et al. 2024, arXiv:2402.13753.",
        "Both run where a launch counts.",
        "It never blocks.",
    ],
)
def test_a_whole_sentence_is_let_through(sentence: str) -> None:
    assert not list(faults(sentence))


@pytest.mark.parametrize(
    ("sentence", "lacks"),
    [
        ("One token a letter, then padding and stop.", "no verb"),
        ("The stop tokens and the stop strings of a run.", "no verb"),
        ("All segments, in buckets.", "no verb"),
        ("Log-ratios and importance ratios between two policies.", "no verb"),
        ("Random but always the same.", "no verb"),
        ("Tested with vLLM 0.24.0; tensor parallelism 1.", "no verb"),
        ("Finds the token that ends a completion.", "no subject"),
        ("Keeps one pool of connections.", "no subject"),
    ],
)
def test_a_sentence_without_a_verb_or_a_subject_is_found(sentence: str, lacks: str) -> None:
    assert list(faults(sentence)) == [f"{lacks} in a sentence: {sentence}"]


def test_only_running_text_needs_verbs() -> None:
    assert not list(faults("It adds.\n\nArgs:\n    a: The first number.\n\nReturns:\n    The sum."))
    assert not list(faults("# A heading\n\n| a table | of nouns |\n\n- an item of a list\n"))
    assert not list(faults("```bash\na command line\n```\n"))


def test_comments_are_read_block_by_block() -> None:
    source = "# The sum of all\n# rows.\nx = 1  # aside\n    # Another one.\n"
    assert list(comments(source)) == [(1, "The sum of all\nrows."), (4, "Another one.")]


def test_a_long_sentence_is_found_and_a_short_one_is_not() -> None:
    def long_sentences(text: str) -> list[str]:
        return [found for found, _ in sentences(text) if words(found) > MOST_WORDS]

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
