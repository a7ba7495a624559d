"""The pages that are made from the code name every option, with type, default and meaning."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlkit import compose
from rlkit.cli import COMMANDS
from rlkit.config import flatten, schemas
from rlkit.reference import commands, options

ROOT = Path(__file__).parent.parent.parent
LEAVES = {leaf.key: leaf for found in options.every_leaf().values() for leaf in found}
METRICS = re.findall(
    r"`([a-z_]+(?:/[A-Za-z_0-9]+)*)`", (ROOT / "docs/reference/metrics.md").read_text()
)
NAMES_IN_CODE = re.compile(
    r'f?"((?:rewards|loss|sampling|time|memory|completions|episodes|clip_ratio|value|rollouts|speed'
    r'|correction|grad_norm|curriculum|environment)/[a-z_/{}.0-9]*)"'
)


@pytest.mark.parametrize(
    "overrides",
    [(), ("algorithm=ppo",), ("algorithm=online_dpo",), ("model=tabular",), ("task=gsm8k",)],
    ids=str,
)
def test_every_leaf_of_a_run_is_on_the_page(overrides: tuple[str, ...]) -> None:
    missing = [
        key
        for key in flatten(compose(*overrides))
        if key not in LEAVES and not key.startswith(("reward.functions.", "task.columns."))
    ]
    assert missing == []


def test_every_leaf_has_a_type_a_default_and_a_meaning() -> None:
    assert [key for key, leaf in LEAVES.items() if not all(leaf)] == []
    assert LEAVES["optim.learning_rate"][1:3] == ("number in [0, 10]", "0.001")
    assert LEAVES["prompts_per_step"].kind == "integer in [1, 100000]"
    assert LEAVES["resume"][1:3] == ("never, auto, must", "never")
    assert LEAVES["init_from"][1:3] == ("text or null", "null")
    assert LEAVES["optim.betas"].default == "[0.9, 0.999]"
    assert LEAVES["run_dir"].default == "required"
    assert LEAVES["model.tuning"].meaning.endswith("beside the weights that compute.")


def test_every_dataclass_of_a_group_has_a_section() -> None:
    page = options.document()
    without_own_keys = {"AutoGeneratorConfig"}
    for schema in schemas():
        named = f"Source: `{schema.node.__name__}` in `" in page
        assert named or schema.node.__name__ in without_own_keys, schema


def test_every_command_has_its_help() -> None:
    page = commands.document()
    for name in COMMANDS:
        assert f"## rlkit {name}\n" in page
        assert len(commands.help_of(name).splitlines()) >= 1
    assert "usage: rlkit chat [-h] [--run RUN]" in page


def test_every_metric_that_the_code_names_is_documented() -> None:
    found: set[str] = set()
    for folder in ("training", "rewards", "algorithms", "functional", "environments"):
        for path in (ROOT / "rlkit" / folder).resolve().rglob("*.py"):
            found |= set(NAMES_IN_CODE.findall(path.read_text()))
    names = {name for name in found if not name.endswith("/")}
    assert len(names) > 25
    missing = []
    for name in sorted(names):
        pattern = re.sub(r"\\\{[^}]*\}", r"[\\w/]+", re.escape(name))
        if not any(re.fullmatch(pattern, known) for known in METRICS):
            missing.append(name)
    assert missing == []
