"""A reader types every command of a page in a folder that has the page's files, and a test watches.

Commands are made small (`page_sizes`). A file or a run that a page assumes is made first
(`page_assumptions`). Every other word is as printed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from cli_process import command, environment
from code_blocks import ROOT, Block, blocks, commands, rlkit_arguments, write_files
from fake_judge import FakeJudge, by_logit
from page_assumptions import make_runs, prepare
from page_sizes import is_there, lacking, smaller
from vllm_serve import SETTINGS, SMALL, served
from warm_cli import Forks

from rlkit.models import ModelConfig
from rlkit.models.source import locate

PROGRAMS = {
    "make": "its targets are run by .ci/run, and by hand where they say so",
    "pip": "packages come from the network; .ci/newcomer and .ci/wheel install ours",
    "python3": "it makes a venv, for packages that come from the network",
    "git": "the repository has no public address yet",
    "cd": "a folder",
    "wandb": "an account of Weights & Biases",
    "sbatch": "a Slurm cluster: tests/cluster/test_slurm.py runs the script of docs/clusters.md",
    "ollama": "Ollama, which no package index has",
}
"""Programs that are not run here, and what they need or who runs them."""
TYPED = ("export", "python", "rlkit", "tensorboard", "torchrun", "trackio", "vllm")
"""Programs that are."""
PARTS = {
    "python -m benchmarks.": "a card",
    "python tests/cluster/": "root and a cluster's packages; tests/cluster starts these programs",
    "--calibrator": "llmcompressor in a venv of its own",
}
"""The same for a part of a command."""
MOST_SECONDS = 300
ADDRESS = re.compile(r"http://(?:127\.0\.0\.1|localhost):\d+[\w./?=&%-]*")
JUDGE = "http://127.0.0.1:8000/v1"
"""Where the pages have their judge."""
OF_RUNS = {"chat", "eval", "export", "generate", "replay", "report", "serve", "watch", "diff"}
"""Commands that read runs."""


class Done(NamedTuple):
    """A command was typed; its exit code, its seconds and the end of what it printed."""

    words: str
    code: int
    seconds: float
    end: str


class Reader(ExitStack):
    """A reader goes through one page from top to bottom; leaving it ends what was started."""

    def __init__(self, forks: Forks, page: Path, folder: Path, model: Path) -> None:
        """Prepare what the page assumes.

        Args:
            forks: They start the command line.
            page: The page of README or docs/.
            folder: An empty folder to work in.
            model: The model that takes the place of larger ones.
        """
        super().__init__()
        self.page, self.folder, self._forks, self._model = page, folder, forks, model
        self._judge, self._variables = JUDGE, environment()
        self.skipped: dict[str, str] = {}
        """Commands that were not run, and what they need."""
        write_files(page, folder)
        prepare(str(page.relative_to(ROOT)), folder)

    def read(self) -> list[Done]:
        """Return the commands that were run, in order."""
        return [
            self._type(words)
            for block in blocks(self.page)
            for words in (commands(block) if is_typed(block) else ())
            if self._can(words)
        ]

    def _can(self, words: list[str]) -> bool:
        line = " ".join(words)
        reasons = [reason for part, reason in PARTS.items() if part in line]
        reasons += [r for program, r in PROGRAMS.items() if words[0].rsplit("/", 1)[-1] == program]
        reason = next(iter(reasons), lacking(words) or needed_program(words[0]))
        if reason:
            self.skipped[line] = reason
        return not reason

    def _type(self, words: list[str]) -> Done:
        begun = time.monotonic()
        arguments = rlkit_arguments(words)
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            self._variables |= {} if name == "PATH" else {name: value}
            code, end = 0, ""
        elif words[0] == "vllm":
            words, (code, end) = words, self._start_judge(words)
        elif words[0] in ("trackio", "tensorboard"):
            code, end = self._serve([str(Path(sys.executable).parent / words[0]), *words[1:]])
        elif words[0] == "torchrun":
            code, end = self._two_processes(arguments or [])
        elif arguments is not None:
            words, code, end = self._rlkit(arguments)
        else:
            code, end = self._call([sys.executable, *words[1:]])
        return Done(" ".join(words), code, time.monotonic() - begun, end)

    def _rlkit(self, arguments: list[str]) -> tuple[list[str], int, str]:
        name = arguments[0] if arguments else ""
        words = [word.replace(JUDGE, self._judge) for word in smaller(arguments, self._model)]
        words = [self._newest(word) for word in words]
        if name in OF_RUNS or any("adapter=" in word for word in words):
            make_runs(words, self.folder, self._train)
        if name in ("serve", "watch"):
            further = ["--", *SMALL] if name == "serve" else []  # for vLLM on one core of a CPU
            return words, *self._serve(command(*words, *further))
        if name == "chat":
            return words, *self._call(command(*words), typed="Hello\n\n")
        if any(word.startswith("gpus=") for word in words):
            return words, *self._call(command(*words))  # ranks end all of their process group
        code, end = self._run(words)
        if name == "judge-check" and code == 1 and "agree" in end:
            code = 0  # a judge that is refused was asked
        return words, code, end

    def _newest(self, word: str) -> str:
        """Return a word whose `XXXXXXXX` is what the sweep before printed."""
        found = re.match(r"(sweeps/\w+-)X+$", word)
        return str(next(self.folder.glob(f"{found[1]}*"))) if found else word

    def _run(self, words: Sequence[str]) -> tuple[int, str]:
        started = self._forks.start(*words, cwd=self.folder, env=self._variables)
        ended = started.finish(MOST_SECONDS)
        return ended.returncode, (ended.stdout + ended.stderr)[-2000:]

    def _train(self, *words: str) -> None:
        code, end = self._run(smaller(list(words), self._model))
        assert code == 0, end

    def _call(self, words: Sequence[str], *, typed: str = "") -> tuple[int, str]:
        ended = subprocess.run(
            words,
            input=typed,
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=MOST_SECONDS,
            check=False,
            start_new_session=True,
        )
        return ended.returncode, (ended.stdout + ended.stderr)[-2000:]

    def _two_processes(self, arguments: list[str]) -> tuple[int, str]:
        """Run two processes of this machine in place of two machines."""
        small = [w for w in smaller(arguments, self._model) if not w.startswith("gpus=")]
        launch = ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2"]
        return self._call([sys.executable, *launch, "-m", "rlkit", "gpus=2", "device=cpu", *small])

    def _start_judge(self, words: list[str]) -> tuple[int, str]:
        """Serve SmolLM2 by vLLM under the name of the page's judge, and ask whether it is good.

        It is a bad judge and is refused, as the pages say. So an endpoint of known taste takes its
        place for what follows.
        """
        folder = Path(locate(ModelConfig(), say=print))
        options = ("--served-model-name", words[2], "--max-model-len", "1024")
        with served(folder, *options, log=self.folder / "vllm.txt") as url:
            given = {"url": f"{url}/v1", "model": words[2], "min_mass": "0.0"}
            code, end = self._run(
                ["judge-check", "task=max_of_n", "reward=judge", f"model.source={self._model}"]
                + [
                    f"++reward.functions.judge.options.{key}={value}"
                    for key, value in given.items()
                ]
            )
        self._judge = self.enter_context(FakeJudge(by_logit(lambda a, b: len(a) - len(b)))).url
        return (0 if code == 1 and "agree" in end else 1), end

    def _serve(self, words: Sequence[str]) -> tuple[int, str]:
        """Start a server, ask the address that it prints, and end it by Ctrl-C."""
        log = self.folder / "server.txt"
        with log.open("w") as output:
            server = subprocess.Popen(
                words,
                cwd=self.folder,
                env={**environment(), **SETTINGS, "PYTHONUNBUFFERED": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                answered = wait_for_an_answer(server, log)
                os.killpg(server.pid, signal.SIGINT)
                server.wait(60)
            finally:
                if server.poll() is None:
                    os.killpg(server.pid, signal.SIGKILL)
        return (0 if answered else 1), log.read_text()[-2000:]


def is_typed(block: Block) -> bool:
    """Return whether a reader types this block into a terminal."""
    return block.language == "bash" and not block.title


def needed_program(word: str) -> str:
    """Return the package of a program that is not installed; empty for one that is there."""
    package = {"vllm": "vllm", "trackio": "trackio", "tensorboard": "tensorboard"}.get(word)
    return package if package and not is_there(package) else ""


def wait_for_an_answer(server: subprocess.Popen[bytes], log: Path) -> bool:
    """Return whether the address that a server prints answers before the server ends."""
    until = time.monotonic() + MOST_SECONDS
    while time.monotonic() < until and server.poll() is None:
        if found := ADDRESS.search(log.read_text()):
            address = found[0].replace("/v1", "/v1/models")
            try:
                with urllib.request.urlopen(address, timeout=30) as reply:
                    return bool(reply.status == 200)
            except OSError:
                pass  # it does not listen yet
        time.sleep(0.5)
    return False
