"""One row of the memory table: a QLoRA step of a real shape on a card cut down to the row's target.

Through the production path: plan, engine, views, adapter, self-test, generation, score, update,
generation again. Sampling fills the key-value cache with prompts of nearly full length; what would
be decoded after that takes time, not memory.
"""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.card import leave, used_before_this_process
from benchmarks.pace import Look, step_ms
from rlkit.algorithms import CorrectionConfig, KLConfig, Objective, RatioConfig, build
from rlkit.algorithms.grpo import GRPOConfig
from rlkit.assembly.generators import bind_adapter, new_generator
from rlkit.assembly.load import LoadedModels, load_base
from rlkit.config import Config
from rlkit.generation import GeneratorConfig, HFGeneratorConfig, Progress
from rlkit.models.config import ModelConfig, QuantConfig, QuantKind
from rlkit.models.resolved import resolve_model
from rlkit.plan.choose import Plan
from rlkit.plan.device import Meter, let_segments_grow
from rlkit.plan.headline import Headline
from rlkit.plan.of_config import planned
from rlkit.plan.parts import GB
from rlkit.plan.rehearse import full_batch
from rlkit.plan.table import lines
from rlkit.policy.policy import new_policy
from rlkit.tasks.config import TaskConfig
from rlkit.training.memory_config import MemoryConfig
from rlkit.training.optim import OptimConfig, build_optimizer
from rlkit.training.score import score
from rlkit.training.update import TrainState, UpdateSettings, train_step
from rlkit.types import Algorithm, Generator, Prompt, SamplingConfig, Setting

_AGAIN_BELOW_S = 4.0
"""An update shorter than this runs twice: kernels launched for the first time take their time."""
_DECODED = 16
"""Tokens decoded with full caches."""


@dataclass(slots=True, kw_only=True)
class Measured:
    """The measurements of a row; sizes in GB (10^9 bytes) as the device counts them, times in
    ms."""

    name: str
    generator: str
    claimed: float
    target: float
    sequences: int
    """Rows of full length, in the update and the reference's scoring that were timed."""
    planned: dict[str, float] = field(default_factory=dict)
    """Sampling and training."""
    parts: dict[str, tuple[float, float]] = field(default_factory=dict)
    """The plan's parts while sampling and while training."""
    chosen: dict[str, str] = field(default_factory=dict)
    """The decisions of the plan."""
    peaks: dict[str, float] = field(default_factory=dict)
    """By phase: context, load, sampling, training, sampling again."""
    held: dict[str, float] = field(default_factory=dict)
    """In use at the end of a phase, caches of the allocator given back."""
    allocated: dict[str, float] = field(default_factory=dict)
    """The allocator's peak of tensors, by phase."""
    outside: dict[str, float] = field(default_factory=dict)
    """In use outside of the allocator at the end of a phase; less a sleeping cache, which the
    allocator still counts."""
    engine: list[str] = field(default_factory=list)
    """The lines that vLLM said about memory while it started."""
    ms: dict[str, float] = field(default_factory=dict)
    """Start, sync, sampling in all, a decoding step, scoring of the reference, update."""
    device: str = ""
    torch: str = torch.__version__
    problem: str = ""
    """The parts that did not fit into the target, and in which phase; empty = nothing."""


class Row:
    """The phases of a row, each measured on its own."""

    def __init__(
        self,
        row: Headline,
        folder: Path,
        generator: GeneratorConfig,
        *,
        sequences: int,
        say: Callable[[str], None],
    ) -> None:
        """`folder`: a model of the row's shape."""
        self.row, self.say = row, say
        self.loaded: LoadedModels | None = None
        self.looks: list[Look] = []
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.config = row_config(row, folder, generator)
        self.found = Measured(
            name=row.name,
            generator="hf" if isinstance(generator, HFGeneratorConfig) else "vllm",
            claimed=row.claimed,
            target=row.target,
            sequences=sequences,
        )

    def measure(self) -> Measured:
        """Run all phases; what did not fit is in the result."""
        phase = "load"
        try:
            self._start()
            for phase, run in (
                ("load", self._load),
                ("sampling", self._sample),
                ("training", self._train),
                ("sampling again", self._sample_again),
            ):
                run()
                self._end(phase)
        except (torch.OutOfMemoryError, ValueError, RuntimeError) as error:
            text = " ".join(str(error).split())[:400]
            self.found.problem = f"{phase}: {type(error).__name__}: {text}"
            traceback.print_exc()
            self.say(self.found.problem)
            self._end(phase)
        finally:
            if self.loaded is not None and self.loaded.engine is not None:
                self.loaded.engine.close()
        return self.found

    def _start(self) -> None:
        """Cut the card down, plan for it."""
        on_cuda = self.device.type == "cuda"
        budget = int(self.row.target * GB)
        before = used_before_this_process()
        ballast = leave(budget, before) if on_cuda else 0
        name = torch.cuda.get_device_name() if on_cuda else platform.machine()
        self.found.device = name
        self.meter = Meter(self.device, before + ballast)
        self.meter = self.meter if on_cuda else Meter.start(self.device)
        self._end("context")
        self.algorithm = _algorithm(self.row)
        self.model = resolve_model(self.config.model, device=self.device, say=self.say)
        made = planned(self.config, self.algorithm, model=self.model, budget=budget)
        self.plan, self.config = made.plan, made.config
        for line in lines(made.plan, where=f"target of {self.row.name}"):
            self.say(line)
        self._note_plan(made.plan)

    def _note_plan(self, plan: Plan) -> None:
        found = self.found
        found.planned = {"sampling": plan.sampling / GB, "training": plan.training / GB}
        found.parts = {p.name: (p.sampling / GB, p.training / GB) for p in plan.parts}
        found.chosen = {key: str(value) for key, value in plan.choice._asdict().items()}

    def _load(self) -> None:
        """Engine, views of its weights, adapter, self-test, optimiser."""
        start = self._now()
        row, config = self.row, self.config
        longest = (row.max_prompt, row.max_completion)
        loaded = load_base(config, model=self.model, longest=longest, say=self.say)
        self.loaded = loaded
        let_segments_grow(self.device)
        if loaded.engine is not None:
            log = loaded.engine.start_log.splitlines()
            self.found.engine = [line for line in log if "GiB" in line or " took " in line]
        workspace = self.plan.choice.workspace_bytes
        self.policy = new_policy(loaded.base, config.model, seed=0, workspace_bytes=workspace)
        self.say(f"base and engine: {self.meter.in_use() / GB - self.meter.before / GB:.3f} GB")
        self.generator = self._generator(loaded)
        optimizer = build_optimizer(self.policy.named_parameters(), config.optim)
        self.state = TrainState(learner=self.policy, optimizer=optimizer)
        self.found.ms["start"] = self._now() - start

    def _generator(self, loaded: LoadedModels) -> Generator:
        options, engine, base = self.config.generator, loaded.engine, loaded.base
        return new_generator(
            options,
            base,
            self.policy,
            engine=engine,
            injector=bind_adapter(options, engine, base, self.policy, say=self.say),
            progress=self._see,
        )

    def _sample(self) -> None:
        """Full caches of all rows, the cache's own batches one after another."""
        self.found.ms["sync"] = self._sync(version=0)
        self.found.ms["sampling"] = self._generate(self.row.rows, num_tokens=_DECODED)
        at_once = min(self.row.rows, self.plan.choice.at_once)
        self.found.ms["decoding step"] = step_ms(self.looks, at_once)

    def _sample_again(self) -> None:
        """The cache comes back, under the adapter that was trained."""
        self.found.ms["wake and sync"] = self._sync(version=1)
        self._generate(1, num_tokens=2)

    def _see(self, progress: Progress) -> None:
        self.looks.append(Look(1000.0 * time.perf_counter(), progress.tokens))
        self.meter.note()

    def _sync(self, *, version: int) -> float:
        start = self._now()
        self.generator.load_adapter(self.policy.adapter, version)
        return self._now() - start

    def _generate(self, rows: int, *, num_tokens: int) -> float:
        """Milliseconds of `num_tokens` after prompts that leave no more room than that."""
        length = self.row.max_prompt + self.row.max_completion - num_tokens
        words = self.row.shape["vocab_size"]
        prompts = [
            # Different from the first token on: nothing is shared.
            Prompt(index=i, ids=tuple((3 + i + 7 * j) % words for j in range(length)), text="")
            for i in range(rows)
        ]
        start = self._now()
        self.generator.generate(
            prompts,
            num_samples=1,
            sampling=SamplingConfig(max_completion_length=num_tokens),
            seeds=[[i] for i in range(rows)],
        )
        return self._now() - start

    def _train(self) -> None:
        row = replace(self.row, rows=self.found.sequences)
        optim, plan = self.config.optim, self.plan
        settings = UpdateSettings(
            optim=optim,
            total_updates=2,
            temperature=1.0,
            tokens_per_microbatch=plan.choice.tokens_per_microbatch,
        )
        shape = (row.rows, row.max_prompt, row.max_completion)
        rollout = full_batch(shape, num_words=row.shape["vocab_size"], device=self.device)
        for _ in range(2):
            start = self._now()
            scored = score(self.policy, rollout, self.algorithm, settings)
            middle = self._now()
            batch = self.algorithm.prepare(scored)
            self.state, result = train_step(self.state, batch, self.algorithm, settings)
            end = self._now()
            self.found.ms |= {"reference": middle - start, "update": end - middle}
            if result.metrics["skipped_updates"]:
                raise RuntimeError(f"an update was skipped: {result.metrics}")
            if end - middle > 1000 * _AGAIN_BELOW_S:
                break

    def _end(self, phase: str) -> None:
        """Write down the peak of `phase` and begin the next one."""
        found = self.found
        found.peaks[phase] = self.meter.peak() / GB
        if self.device.type == "cuda":
            found.allocated[phase] = torch.cuda.max_memory_allocated() / GB
        self.meter.restart()
        if self.device.type == "cuda":
            outside = self.meter.in_use() - torch.cuda.memory_reserved()
            found.outside[phase] = (outside - self.meter.before) / GB
        self.meter.note()
        found.held[phase] = self.meter.highest / GB
        self.say(
            f"{phase}: peak {found.peaks[phase]:.3f} GB, allocator "
            f"{found.allocated.get(phase, 0.0):.3f}, then {found.held[phase]:.3f}, outside of the "
            f"allocator {found.outside.get(phase, 0.0):.3f}; {_rounded(found.ms)}"
        )

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return 1000.0 * time.perf_counter()


def row_config(row: Headline, folder: Path, generator: GeneratorConfig) -> Config:
    """The run that `row` stands for."""
    return Config(
        prompts_per_step=1,
        model=ModelConfig(source=str(folder)),
        task=TaskConfig(max_prompt_length=row.max_prompt, max_completion_length=row.max_completion),
        generator=generator,
        kl=KLConfig(),
        ratio=RatioConfig(),
        correction=CorrectionConfig(),
        algorithm=GRPOConfig(group_size=row.rows),
        optim=OptimConfig(kind=row.optim, learning_rate=1e-4),
        memory=MemoryConfig(quant=QuantConfig(kind=QuantKind.nf4)),
    )


def _rounded(ms: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.0f} ms" for key, value in ms.items())


def _algorithm(row: Headline) -> Algorithm:
    return build(
        Objective(GRPOConfig(group_size=row.rows), KLConfig(), RatioConfig(), CorrectionConfig()),
        Setting(group_size=row.rows, max_completion_length=row.max_completion, updates_per_batch=1),
    )
