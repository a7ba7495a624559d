"""Files of conf/ repeat no default of a dataclass, and each says in front what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from yaml_defaults import repeated_defaults

CONF = Path(__file__).parent.parent / "conf"
FILES = sorted(CONF.rglob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF)))
def test_defaults_live_in_the_dataclasses_only(file: Path) -> None:
    assert repeated_defaults(CONF, file) == []


def test_a_repeated_default_is_found_and_one_that_takes_back_is_not(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    for group in ("kl", "experiment", "model"):
        (conf / group).mkdir(parents=True)
    (conf / "model" / "tabular.yaml").write_text("# @package _global_\nsteps: 300\n")
    schema = "defaults:\n  - /schema/kl/base@_here_\n  - _self_\n"
    (conf / "kl" / "one.yaml").write_text(f"{schema}beta: 0.04\nestimator: k1\n")
    (conf / "kl" / "two.yaml").write_text("defaults:\n  - one\n  - _self_\nestimator: k3\n")
    experiment = "# @package _global_\nsteps: 12\nseed: 0\noptim:\n  learning_rate: 1e-3\n"
    (conf / "experiment" / "mine.yaml").write_text(experiment)
    assert repeated_defaults(conf, conf / "kl" / "one.yaml") == ["kl.beta"]
    assert repeated_defaults(conf, conf / "kl" / "two.yaml") == []
    found = repeated_defaults(conf, conf / "experiment" / "mine.yaml")
    assert found == ["seed", "optim.learning_rate"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF)))
def test_every_file_begins_with_a_comment_that_says_what_it_is(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if line != "# @package _global_"]
    assert lines[0].startswith("# "), "one sentence in front"
