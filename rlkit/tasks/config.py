"""This module holds the options of the tasks."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Annotated

from rlkit.schema import ANY_LENGTH, Between, Options, require
from rlkit.tasks.base import PromptStyle


class Overlong(StrEnum):
    """This decides over prompts of more than `task.max_prompt_length` tokens."""

    error = "error"
    """Refuse it, naming the row."""
    drop = "drop"
    """Leave it out, and count it."""
    truncate_left = "truncate_left"
    """Keep its last tokens (and its first, if that is BOS), and count it."""


class BadRows(StrEnum):
    """This decides over rows that cannot become prompts: empty, unrenderable, of a wrong type."""

    error = "error"
    """Refuse the data, naming each such row."""
    drop = "drop"
    """Leave it out, and name it."""


class OverlongTargets(StrEnum):
    """This decides over targets of more than `task.max_completion_length` tokens."""

    error = "error"
    """Refuse it, naming the row."""
    drop = "drop"
    """Leave the row out, and count it."""
    truncate = "truncate"
    """Keep its first tokens, without an end, and count it."""


@dataclass(kw_only=True, slots=True)
class TaskConfig(Options):
    """Every task has these options."""

    name: str = ""
    """Which task this is; set by the task's own YAML."""
    seed: int = 0
    """Determines which problems are held out and what the generated ones are; >= 0. Independent of
    the run seed, so that runs with different seeds are evaluated on the same prompts."""
    eval_size: Annotated[int, Between(1, 20_000)] = 128
    """Most held-out prompts, in [1, 20000]; fewer when the task has fewer different problems."""
    max_prompt_length: Annotated[int, Between(1, 10_000_000)] = 512
    """Tokens, in [1, 10000000]."""
    max_completion_length: Annotated[int, Between(1, 10_000_000)] = 32
    """Tokens, in [1, 10000000]; sampling ends there with `finish_reason` length."""
    overlong_prompts: Overlong = Overlong.error
    """What to do with longer prompts."""
    bad_rows: BadRows = BadRows.error
    """error or drop: what to do with rows that cannot become prompts."""
    target: Annotated[str, ANY_LENGTH] = ""
    """For algorithm=sft: the column with the completion to imitate, or a text with `{column}` in
    it. Empty = the task's own, such as GSM8K's solution with XML tags."""
    overlong_targets: OverlongTargets = OverlongTargets.error
    """error, drop or truncate: what to do with targets over `task.max_completion_length` tokens."""

    def __post_init__(self) -> None:
        own_name = next(f.default for f in fields(self) if f.name == "name")
        if self.name != own_name:
            raise ValueError(f"task.name must be {own_name} (choose by task=...), got {self.name}")
        require(self.seed >= 0, "task.seed", ">= 0", self.seed)
        for key in ("eval_size", "max_prompt_length", "max_completion_length"):
            require(getattr(self, key) >= 1, f"task.{key}", ">= 1", getattr(self, key))


def require_between(key: str, least: int, most: int, value: int) -> None:
    """Raise ValueError unless `value` is in the range of an option.

    Args:
        key: The option below `task`.
        least: Its smallest value.
        most: Its largest value.
        value: The value that it has.

    Raises:
        ValueError: `value` is below `least` or above `most`.
    """
    require(least <= value <= most, f"task.{key}", f"in [{least}, {most}]", value)


@dataclass(kw_only=True, slots=True)
class EchoConfig(TaskConfig):
    """Say the secret word inside `<answer></answer>`; one worked example comes first."""

    name: str = "echo"


@dataclass(kw_only=True, slots=True)
class RevWordsConfig(TaskConfig):
    """Say the words in reverse order inside `<answer></answer>`; four worked examples."""

    name: str = "rev_words"
    min_words: int = 2
    """Fewest words, in [2, 8]."""
    max_words: int = 2
    """Most words, >= min_words and <= 8; above `min_words`, completions differ in length."""

    def __post_init__(self) -> None:
        super(RevWordsConfig, self).__post_init__()
        require_between("min_words", 2, 8, self.min_words)
        require_between("max_words", self.min_words, 8, self.max_words)


@dataclass(kw_only=True, slots=True)
class MaxOfNConfig(TaskConfig):
    """Find the largest of `n` numbers below 100; plain text, four worked examples."""

    name: str = "max_of_n"
    max_completion_length: int = 8
    n: int = 3
    """How many numbers, in [2, 8]; 2 is easy, 5 is hard for a 135M model."""

    def __post_init__(self) -> None:
        super(MaxOfNConfig, self).__post_init__()
        require_between("n", 2, 8, self.n)


@dataclass(kw_only=True, slots=True)
class ChainSumConfig(TaskConfig):
    """Add and subtract, with results >= 0; plain text, four worked examples."""

    name: str = "chain_sum"
    max_completion_length: int = 8
    terms: int = 2
    """Numbers in the sum, in [2, 8]."""
    digits: int = 1
    """Digits of each number, in [1, 6]. Two terms of one digit make only 155 problems."""

    def __post_init__(self) -> None:
        super(ChainSumConfig, self).__post_init__()
        require_between("terms", 2, 8, self.terms)
        require_between("digits", 1, 6, self.digits)


@dataclass(kw_only=True, slots=True)
class CompareDecimalsConfig(TaskConfig):
    """Say which is larger, 9.11 or 9.9; plain text, four worked examples."""

    name: str = "compare_decimals"
    max_completion_length: int = 10


@dataclass(kw_only=True, slots=True)
class CalculatorConfig(TaskConfig):
    """Multiply with a calculator: call it in one turn, copy its answer in the next."""

    name: str = "calculator"
    max_completion_length: int = 96
    digits: int = 3
    """Digits of each factor, in [2, 6]; few models know a product of three digits each."""

    def __post_init__(self) -> None:
        super(CalculatorConfig, self).__post_init__()
        require_between("digits", 2, 6, self.digits)


@dataclass(kw_only=True, slots=True)
class GuessNumberConfig(TaskConfig):
    """Find one of seven numbers in three guesses, each answered with higher or lower."""

    name: str = "guess_number"
    max_completion_length: int = 96


@dataclass(kw_only=True, slots=True)
class LookupConfig(TaskConfig):
    """Search a directory whose numbers are drawn anew for each episode."""

    name: str = "lookup"
    max_completion_length: int = 96


@dataclass(kw_only=True, slots=True)
class DataConfig(TaskConfig):
    """Rows come from a file, a folder, or a data set of the Hugging Face hub."""

    path: str = ""
    """A .jsonl, .json or .parquet file; a folder with train and test files; or a hub id, which
    needs `pip install 'rlkit-lm[data]'`. What exists locally wins."""
    subset: str = ""
    """The hub data set's configuration, or a folder inside `path`; empty = the default."""
    train_split: str = "train"
    """Hub split, or the start of the file names in a folder."""
    eval_split: str = "test"
    """Likewise, for the held-out rows. Rows whose prompt is held out are never trained on."""
    eval_path: str = ""
    """A file of held-out rows; empty = `eval_split` of `path`."""
    stream: bool = False
    """Read rows of .jsonl files when a step needs them, for files larger than memory. They are then
    not looked at before the first step; the held-out rows are a file of their own."""
    eval_fraction: float = 0.0
    """Share of the rows to hold out when there is no file of them, in [0, 1). A hash of the prompt
    decides, so that equal prompts stay together. 0 = do not.
    """

    def __post_init__(self) -> None:
        super(DataConfig, self).__post_init__()
        if not 0 <= self.eval_fraction < 1:
            raise ValueError(f"task.eval_fraction must be in [0, 1), got {self.eval_fraction}")
        if self.stream and self.eval_fraction:
            raise ValueError(
                f"task.eval_fraction must be 0 with task.stream=true, got {self.eval_fraction}: "
                "name the held-out rows by task.eval_path"
            )
        if self.eval_path and self.eval_fraction:
            raise ValueError(
                "task.eval_fraction must be 0 when task.eval_path is given, "
                f"got {self.eval_fraction}"
            )


@dataclass(kw_only=True, slots=True)
class GSM8KConfig(DataConfig):
    """Solve grade-school mathematics (arXiv:2110.14168) with XML reasoning and answer tags."""

    name: str = "gsm8k"
    path: str = "openai/gsm8k"
    subset: str = "main"
    max_completion_length: int = 512


@dataclass(kw_only=True, slots=True)
class DatasetConfig(DataConfig):
    """Use rows of your own. The prompt column holds text, or messages with `role` and `content`."""

    name: str = "dataset"
    columns: dict[str, str] = field(default_factory=dict)
    """What the rewards call a column, and what the file calls it: `{prompt: question, answer:
    solution}`. `prompt` is required; unnamed columns are left out."""
    style: PromptStyle = PromptStyle.chat
    """chat: text becomes a user message; raw: text goes to the model as it stands."""
    system: Annotated[str, ANY_LENGTH] = ""
    """System message before each prompt of style chat; empty = none."""
    ignore_keys: list[str] = field(default_factory=list)
    """Keys of messages that are left out, such as `name`. Any other key that the chat template does
    not use is refused, because it would be lost without a word."""
    stop: list[str] = field(default_factory=list)
    """Strings that end a completion, beside the model's stop tokens."""
    gold: Annotated[str, ANY_LENGTH] = ""
    """A completion with full marks, `{column}` standing for a column: `<answer>{answer}</answer>`.
    With it the check before training proves that the rewards can be earned. Empty = no check."""
    max_completion_length: int = 512

    def __post_init__(self) -> None:
        super(DatasetConfig, self).__post_init__()
        if self.style is PromptStyle.raw and self.system:
            raise ValueError(f"task.system must be empty with style raw, got {self.system!r}")
