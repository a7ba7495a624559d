"""Jobs are composed alike without Hydra's private shortcut, and a missing name is one line."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hydra import initialize_config_module
from omegaconf import OmegaConf

from rlkit.launch import hydra_compat
from rlkit.launch.composing import Composer, compose_job, register

JOBS = (
    ["kl=none", "seed=3"],
    ["kl=none", "seed=4", "steps=5"],
    ["kl=reverse_k1", "seed=3"],
)


@pytest.mark.parametrize("shortcut", [True, False])
def test_a_composer_gives_what_hydra_composes(
    shortcut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shortcut:
        monkeypatch.setattr(hydra_compat, "_APPLY", None)
    assert hydra_compat.can_apply_values() is shortcut
    register()
    with initialize_config_module("rlkit.conf", version_base="1.3"):
        composer = Composer()
        found = [OmegaConf.to_container(composer(job)) for job in JOBS]
        expected = [OmegaConf.to_container(compose_job(job)) for job in JOBS]
    assert found == expected
    assert found[0] != found[1] != found[2]


def test_a_hydra_without_a_name_is_refused_in_one_line_before_anything_starts() -> None:
    code = (
        "import hydra._internal.utils as utils; del utils.get_args_parser; "
        "from rlkit.cli import run; raise SystemExit(run(['seed=1']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "rlkit: hydra-core must have hydra._internal.utils.get_args_parser, got hydra-core 1."
    )
