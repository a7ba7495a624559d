"""The notebooks run from top to bottom, say what they said, and say the truth."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from cli_process import environment
from notebook_cells import cells, printed, source
from test_prose import faults

from rlkit.tabular.config import TabularModelConfig, TabularTaskConfig
from rlkit.tabular.world import make_world

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUNNER = ROOT / "tests" / "support" / "notebook_cells.py"
NUMBER = re.compile(r"-?\d+\.\d+|-?\d+")


@cache
def run(name: str) -> tuple[str, ...]:
    """The output of each code cell of a notebook, as it runs now."""
    done = subprocess.run(
        [sys.executable, str(RUNNER), str(ROOT / "notebooks" / f"{name}.ipynb")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def numbers(name: str, words: str) -> list[float]:
    """The numbers of the line that begins with `words`, those in the words left out."""
    lines = "\n".join(run(name)).splitlines()
    (line,) = [line for line in lines if line.startswith(words)]
    return [float(text) for text in NUMBER.findall(line[len(words) :])]


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["first_run", "kl_detach", "your_reward"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_kept_is_what_the_cells_print(path: Path) -> None:
    """On failure: make notebooks"""
    kept = [printed(cell) for cell in cells(path, "code")]
    for now, before in zip(run(path.stem), kept, strict=True):
        assert NUMBER.sub("#", now) == NUMBER.sub("#", before)
        found = [float(text) for text in NUMBER.findall(now)]
        assert found == pytest.approx([float(text) for text in NUMBER.findall(before)], abs=2e-3)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_on_colab_and_is_a_lesson(path: Path) -> None:
    text, code = cells(path, "markdown"), cells(path, "code")
    assert f"/blob/main/notebooks/{path.name})" in source(text[0])
    assert '"pip", "install", "-q", "rlkit-lm"' in source(code[0])
    assert source(text[0]).startswith("# ") and len(text) >= 5
    said = [fault for cell in text for fault in faults(source(cell))]
    assert not said
    for number, cell in enumerate(code):
        assert cell["execution_count"] == number + 1
        kinds = [output["output_type"] for output in cell["outputs"]]
        assert set(kinds) <= {"stream", "display_data"}
        assert all(output.get("name") != "stderr" for output in cell["outputs"])
    drawn = [o for cell in code for o in cell["outputs"] if "image/png" in o.get("data", {})]
    assert len(drawn) == 1


def test_the_first_run_starts_at_the_enumerated_reward() -> None:
    world = make_world(TabularModelConfig(), TabularTaskConfig())
    chances = world.ref_logits.softmax(dim=-1).tolist()
    completions = [
        tuple(row[: int(m.sum())])
        for row, m in zip(world.tree.ids.tolist(), world.tree.mask, strict=True)
    ]
    place = {words: n for n, words in enumerate(completions)}
    state = {prefix: s for s, prefix in enumerate(world.tree.prefixes)}
    total, rewards = 0.0, world.rewards.tolist()
    for prompt in range(8):
        mass = 0.0
        for words in itertools.product(range(4), repeat=4):  # all paths, cut at their first end
            end = words.index(0) + 1 if 0 in words else 4
            if any(words[end:]):
                continue
            said = words[:end]
            chance = math.prod(chances[prompt][state[said[:t]]][w] for t, w in enumerate(said))
            mass += chance
            total += chance * rewards[prompt][place[said]]
        assert mass == pytest.approx(1.0, abs=1e-12)
    assert numbers("first_run", "expected reward before training:") == [round(total / 8, 4)]
    before, after = numbers("first_run", "expected reward: ")
    assert before == round(total / 8, 4) and after > 0.8
    root = round(math.sqrt(3) / 2, 3)  # .5 over the standard deviation of (1, 0, 0, 1)
    assert numbers("first_run", "advantages:") == [root, -root, -root, root]


def test_a_reward_of_ones_own_is_scored_by_hand_and_learnt_to_the_known_optimum() -> None:
    assert numbers("your_reward", "'Salt please'") == [1, 0.5]
    assert numbers("your_reward", "'Salt' ") == [0, 1.0]
    assert numbers("your_reward", "'please please'") == [0, 0.5]
    assert "''                 polite 0   broken nan" in run("your_reward")[2]
    # Uniform words: 1/9 + 2/27 + 3/27 = 8/27 of the answers say it once, and beta is 0.2.
    best = 8 * math.exp(5) / (8 * math.exp(5) + 19)
    (found,) = numbers("your_reward", "polite    says 'please' most; exactly one please:")
    assert found == pytest.approx(best, abs=0.01)
    assert numbers("your_reward", "careless  says 'please please please' most;") == [0.0]
    for name in ("polite   ", "careless "):
        (distance,) = numbers("your_reward", f"{name} share of probability")
        assert distance < 0.02


def test_the_experiment_ends_as_it_was_predicted() -> None:
    assert numbers("kl_detach", "detached") == [1.0, 1.0]
    assert numbers("kl_detach", "not detached") == [1.0, 0.0]
    # k3 has the forward KL's gradient; docs/objective.md has these cells.
    assert numbers("kl_detach", "kl=reverse_k3 ")[-1] == 0.0
    assert numbers("kl_detach", "kl=reverse_exact ")[0] == 0.0
    assert numbers("kl_detach", "ratio=no_detach ") == [1.0]
    ends = {
        name: {row[0]: row[1:] for row in rows_of(name)}
        for name in ("reference", "no detach", "full reverse", "forward")
    }
    for beta in (0.04, 2.0):
        reward, kl = ends["no detach"][beta]
        assert kl == 0.0 and [reward] == numbers("first_run", "expected reward before training:")
    close = [ends[name][0.04][0] for name in ("reference", "full reverse", "forward")]
    assert max(close) - min(close) < 0.02
    apart = [ends[name][2.0][0] for name in ("reference", "full reverse", "forward")]
    assert apart[0] < apart[1] - 0.1 < apart[1] < apart[2]


def rows_of(variant: str) -> list[list[float]]:
    lines = "\n".join(run("kl_detach")).splitlines()
    found = [line for line in lines if re.fullmatch(rf"{variant} +[\d.]+ +[\d.]+ +[\d.]+", line)]
    return [[float(text) for text in NUMBER.findall(line)] for line in found]
