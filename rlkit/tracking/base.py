"""A run tells its observers frozen records, through the `Tracker` Protocol that the trainer uses.

Steps count from 0: the record of step s is written when s + 1 updates of `num_steps` are done. An
evaluation's `step` is the number of updates the evaluated policy has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol


class TrackingError(RuntimeError):
    """A local record could not be written; the message is one line with the file and the cause."""


class Phase(StrEnum):
    """The trainer goes through these phases in each step; `evaluate` lies between steps."""

    generate = "generate"
    reward = "reward"
    score = "score"
    update = "update"
    sync = "sync"
    evaluate = "evaluate"


class Level(StrEnum):
    """This level says how much a message matters."""

    info = "info"
    warning = "warning"
    error = "error"


class Status(StrEnum):
    """A run has one of these states; it ends with one of the last three."""

    running = "running"
    completed = "completed"
    interrupted = "interrupted"
    failed = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """These facts about a run are known before the first step."""

    run_dir: Path
    """Folder of this run alone; every local file goes there."""
    name: str
    title: str = ""
    """The text that tells this run from others of its group, for people; empty = the name."""
    group: str = ""
    """The sweep that the run belongs to; empty = none."""
    task: str
    model: str
    algorithm: str
    device: str
    dtype: str
    dtype_reason: str = ""
    """Why this dtype, in a few words."""
    num_steps: int
    first_step: int = 0
    """First step this process will record: 0, or where a resumed run goes on."""
    prompts_per_step: int
    group_size: int
    reward_names: tuple[str, ...]
    """In the order of the configuration."""
    signal: str = "reward"
    """The training metric to watch: `reward`, or the `loss` of a run without rewards."""
    config: Mapping[str, object] = field(default_factory=dict)
    """The resolved configuration, flat: `algorithm.clip_low` -> 0.2."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """The versions of rlkit, Python, torch and so on; `commit` too when known."""
    hardware: Mapping[str, str] = field(default_factory=dict)
    """System, processor, memory, devices."""
    command: str = ""
    """The command line that started the run."""
    warnings: tuple[str, ...] = ()
    """The warnings that came up while the run was being set up."""


class Passage(NamedTuple):
    """A passage is a part of an episode that one side said."""

    text: str
    sampled: bool
    """False = the environment's."""
    reward: float | None = None
    """The part of a turn in the reward; None for the environment's passages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """This record is one sampled completion and what it earned."""

    step: int
    prompt_index: int
    sample_index: int
    prompt: str
    completion: str
    finish_reason: str
    num_tokens: int
    """Sampled tokens, the stop token included."""
    components: tuple[float, ...]
    """Raw value of each reward function, in `RunInfo.reward_names` order; NaN = no value."""
    reward: float
    advantage: float | None = None
    """None where there is none: evaluations, samples that a filter dropped."""
    columns: Mapping[str, object] = field(default_factory=dict)
    """The task's columns of the row, such as the right `answer`."""
    passages: tuple[Passage, ...] = ()
    """The episode turn by turn; empty where there is one turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """This record is one finished step.

    `metrics` names follow TRL. Whatever may differ between two runs of the same seed starts with
    one of `VOLATILE`, so that the rest can be compared bitwise.
    """

    step: int
    metrics: Mapping[str, float]
    samples: Sequence[SampleRow] = ()


VOLATILE = ("time/", "memory/", "speed/")
"""Prefixes of the metrics that depend on the machine and not on the seed."""


class Measure(StrEnum):
    """An evaluation measures this quantity of a sample."""

    success = "success"
    """The task's own criterion: 1 for a right answer, 0 for a wrong one."""
    reward = "reward"
    """The weighted reward, where the task cannot know what a right answer is."""
    logp = "logp"
    """The mean log-probability of a held-out target's tokens, nats, where nothing is sampled."""


class Interval(NamedTuple):
    """This record is a mean with its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRecord:
    """One evaluation on held-out prompts is made by `rlkit.tracking.intervals.evaluate`."""

    label: str
    """`before`, `after`, or what the trainer calls an evaluation in between."""
    step: int
    """Updates the policy had seen."""
    prompt_indices: tuple[int, ...]
    values: tuple[float, ...]
    """Mean of `measure` over each prompt's judged samples, in the order of `prompt_indices`; NaN
    where not one of them was judged."""
    measure: Measure = Measure.success
    prompt_keys: tuple[str, ...] = ()
    """A hash of each prompt's content, by which runs are paired; empty when unknown."""
    samples_per_prompt: int
    """0 = no sampling: exact expectations."""
    interval: Interval
    """The interval of the mean over the prompts with a judged sample; NaN when there is none."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Further numbers, by name.

    `kl` (policy || reference) is in nats a completion, `entropy` in nats a token; `length` and
    `length_wrong` are in tokens, and `reward` is there as well. `judged` and `unjudged` are samples
    with and without a value of `measure`. Two say how much training it took: `samples` are the
    completions sampled so far, `time/train` the seconds of the steps so far.
    """
    samples: Sequence[SampleRow] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """This record says how the run ended."""

    status: Status
    message: str = ""
    """One line; for a failure, its cause."""
    wall_seconds: float


class Tracker(Protocol):
    """A tracker observes a run.

    Order of calls: `start`, any of `progress`, `step` and `evaluation`, `finish`, `close`.
    `message` may come before `start`; `close` at any time, twice as well, and nothing after it.
    """

    def start(self, info: RunInfo) -> None: ...

    def progress(self, phase: Phase, done: int, total: int) -> None:
        """Note that `done` of `total` units of the phase are done.

        It is cheap, and may be called for every token.
        """
        ...

    def step(self, record: StepRecord) -> None: ...

    def evaluation(self, record: EvalRecord) -> None: ...

    def message(self, level: Level, text: str) -> None: ...

    def finish(self, outcome: Outcome) -> None: ...

    def close(self, deadline_s: float) -> None:
        """Let go of files, threads and the terminal within `deadline_s` seconds."""
        ...
