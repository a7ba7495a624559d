"""An algorithm from a file goes to another machine with the options of its jobs."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from rlkit.launch.code_of_jobs import CodeOfJobs, ContextWithCode
from rlkit.launch.hydra_compat import Callbacks

SOURCE = Path(__file__).parents[2] / "examples" / "my_algorithm.py"
FN = "my_algorithm.py:share_of_mean"
WRITE = """
import sys
import cloudpickle
from hydra import initialize_config_module
from rlkit.launch.code_of_jobs import CodeOfJobs
from rlkit.launch.composing import compose_job, register
from rlkit.launch.outside import offer_algorithms
register()
words = ["model=tabular", f"algorithm.fn={sys.argv[1]}", "algorithm.share=0.5"]
with initialize_config_module("rlkit.conf", version_base="1.3"):
    options = compose_job(offer_algorithms(words))
sys.stdout.buffer.write(cloudpickle.dumps((CodeOfJobs(".", sys.argv[2:]), options)))
"""
READ = """
import pickle, sys
_, options = pickle.load(sys.stdin.buffer)
print(options.algorithm.share)
"""


def python(script: str, *arguments: str, cwd: Path, data: bytes = b"") -> tuple[bytes, bytes]:
    """The output and the errors of a script in a process of its own."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, input=data, cwd=cwd, capture_output=True, check=False)
    return done.stdout, done.stderr


def test_another_process_reads_options_whose_class_is_in_a_file(tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")  # submitit and Ray pickle with it
    shutil.copy(SOURCE, tmp_path / "my_algorithm.py")
    for targets in ([FN], []):
        data, errors = python(WRITE, FN, *targets, cwd=tmp_path)
        assert data, errors.decode()
        output, errors = python(READ, cwd=tmp_path, data=data)
        if targets:
            assert output == b"0.5\n", errors.decode()
        else:
            assert b"ModuleNotFoundError: No module named 'rlkit_user" in errors


def test_the_code_is_pickled_before_what_needs_it() -> None:
    with initialize_config_module("rlkit.conf", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
    context = ContextWithCode(CodeOfJobs("/", []), loader, Callbacks())
    assert next(iter(vars(context))) == "code"
    assert pickle.loads(pickle.dumps(context.code)).folder == "/"
