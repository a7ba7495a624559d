"""An algorithm that lives outside the repository, on every way that one of ours goes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from cli_process import RunCLI, environment
from warm_cli import Forks

from rlkit import cli
from rlkit.config import ConfigError, algorithm_of, option_of
from rlkit.launch.composing import register
from rlkit.launch.packed import pack, unpack
from rlkit.launch.preflight import preflight
from rlkit.launch.run_folder import write_status
from rlkit.schema import content_hash
from rlkit.tracking import Status, comparable, read_metrics
from rlkit.tracking.files import read_lines

SOURCE = Path(__file__).parents[2] / "examples" / "my_algorithm.py"
FN = "my_algorithm.py:share_of_mean"
TINY = ["model=tabular", "steps=8", "evaluation.every=0", "checkpoint.every=2"]
LINES = [*TINY, "tracker.metrics_every=1", "tracker.plot=false", "tracker.report=false"]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the algorithm in an empty folder, where the commands run."""
    register()
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(SOURCE, tmp_path / "my_algorithm.py"))


def metrics(run: Path) -> list[dict[str, object]]:
    return [comparable(line) for line in read_lines(run / "metrics.jsonl")]


def test_it_trains_as_the_same_algorithm_of_ours_and_resumes(rlkit: RunCLI, file: Path) -> None:
    ours = ["algorithm=grpo", "algorithm.advantage.scale=none", "algorithm.group_size=4"]
    mine = [f"algorithm.fn={FN}", "algorithm.group_size=4"]
    for name, options in {"ours": ours, "mine": mine}.items():
        result = rlkit(f"run_dir={name}", *LINES, *options)
        assert result.returncode == 0, result.stderr
    assert rlkit("run_dir=parts", *LINES, *mine, "steps=3").returncode == 0
    resumed = rlkit("run_dir=parts", *LINES, *mine, "resume=must")
    assert resumed.returncode == 0, resumed.stderr
    assert metrics(Path("mine")) == metrics(Path("ours")) == metrics(Path("parts"))
    saved = yaml.safe_load(Path("mine/config.yaml").read_text())["algorithm"]
    assert saved["fn"] == FN and saved["share"] == 1.0
    assert saved["sha256"] == content_hash(file)


def test_a_run_is_not_resumed_with_another_file(rlkit: RunCLI, file: Path) -> None:
    assert rlkit("run_dir=run", *LINES, f"algorithm.fn={FN}").returncode == 0
    before = content_hash(file)
    file.write_text(file.read_text() + "\n# another algorithm\n")
    result = rlkit("run_dir=run", *LINES, f"algorithm.fn={FN}", "resume=auto", "steps=9")
    assert result.returncode == 2
    rule = f"algorithm.sha256 must be {before} as in the run being resumed (run)"
    assert result.stderr == f"rlkit: {rule}, got {content_hash(file)}\n"


def test_a_sweep_compares_it_with_ours_and_goes_on(forks: Forks, file: Path) -> None:
    grid = [f"algorithm=grpo,{FN}", "kl=none", "hydra.launcher.retry_failed=true"]

    def sweep(*more: str) -> str:
        environ = {**environment(), "CUDA_VISIBLE_DEVICES": ""}
        run = forks.start("-m", *LINES, *grid, *more, cwd=file.parent, env=environ)
        result = run.finish(240)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    sweep()
    (folder,) = Path("sweeps").iterdir()
    jobs = json.loads((folder / "sweep.json").read_text())["jobs"]
    assert {job["overrides"][-2] for job in jobs} == {"algorithm=grpo", f"algorithm={FN}"}
    (job,) = [folder / job["folder"] for job in jobs if f"algorithm={FN}" in job["overrides"]]
    whole = metrics(job)
    assert len(whole) == 8 and "2 done before" in sweep()
    # As if it had been stopped in its seventh step: the checkpoint of the sixth is the newest.
    (newest,) = (job / "checkpoints").glob("*000008*")
    shutil.rmtree(newest)
    (job / "DONE").unlink()
    write_status(job, Status.interrupted, message="")
    assert "1 done before" in sweep()
    assert metrics(job) == whole


def test_values_of_its_options_are_swept_and_checked_first(file: Path) -> None:
    jobs = preflight(["-m", *TINY, f"algorithm.fn={FN}", "algorithm.share=0,0.5"])
    assert [vars(job.algorithm).get("fn") for job in jobs] == [FN, FN]
    assert [getattr(job.algorithm, "share") for job in jobs] == [0.0, 0.5]  # noqa: B009
    with pytest.raises(ConfigError, match=r"job \[.*\]: algorithm.share must be in \[0, 1\]"):
        preflight(["-m", *TINY, f"algorithm.fn={FN}", "algorithm.share=0.5,2"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [f"algorithm.fn={FN}", "algorithm.shar=1"],
            "algorithm.shar is not an option (did you mean algorithm.share?)",
        ),
        (
            [f"algorithm.fn={FN}", "+algorithm.shar=1"],
            "algorithm.shar is not an option (did you mean algorithm.share?)",
        ),
        (["algorithm.fn=none.py:f"], "algorithm.fn must name an existing file, got none.py:f"),
        (["algorithm.fn=grpo"], "algorithm.fn must be package.module:factory or file.py:factory, "),
        (["algorithm.fn=my_algorithm.py:nothing"], "my_algorithm.py has no such function"),
        (["algorithm.fn=my_algorithm.py:ShareConfig"], "objective: Objective[Config], setting"),
        ([f"algorithm.fn={FN}", "ratio.detach=false", "optim.inner_epochs=2"], "ratio.old=current"),
        ([f"algorithm.fn={FN}", "algorithm.sha256=0"], "algorithm.sha256 must be"),
    ],
)
def test_mistakes_are_one_line(file: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        preflight([*TINY, *arguments])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_configuration_is_packed_exactly(file: Path) -> None:
    (config,) = preflight([*TINY, f"algorithm.fn={file}:share_of_mean", "algorithm.share=0.25"])
    again = unpack(pack(config))
    assert pack(again) == pack(config)
    assert option_of("algorithm", again.algorithm) == f"{file}:share_of_mean"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(ConfigError, match=r"algorithm.sha256 must be .*, as my_algorithm.py is"):
        unpack(pack(config))


def test_check_and_replay_know_it(rlkit: RunCLI, small: list[str], file: Path) -> None:
    checked = rlkit("check", *small, f"algorithm.fn={FN}")
    assert checked.returncode == 0, checked.stderr
    run = rlkit("run_dir=run", *small, "steps=2", f"algorithm.fn={FN}", "algorithm.share=0.5")
    assert run.returncode == 0, run.stderr
    assert cli.run(["replay", "run_dir=run", f"algorithms=[grpo,{FN}]", "step=1"]) == 0
    found = json.loads(Path("run/replay-step-000001.json").read_text())["algorithms"]
    assert found[FN]["config"]["algorithm"]["share"] == 1.0
    assert found[FN]["cosines"]["grpo"] > 0.5
    assert read_metrics(Path("run"))[1]["grad_norm"] > 0.0


def test_an_installed_package_offers_one_by_name(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    (site / "plugin-1.0.dist-info").mkdir(parents=True)
    (site / "plugin-1.0.dist-info" / "METADATA").write_text("Name: plugin\nVersion: 1.0\n")
    points = "[rlkit.algorithms]\nshare = offered_algorithm:share_of_mean\n"
    (site / "plugin-1.0.dist-info" / "entry_points.txt").write_text(points)
    shutil.copy(SOURCE, site / "offered_algorithm.py")
    monkeypatch.syspath_prepend(site)
    (config,) = preflight([*TINY, "algorithm=share", "algorithm.share=0.5"])
    assert getattr(config.algorithm, "fn") == "offered_algorithm:share_of_mean"  # noqa: B009
    assert algorithm_of(config).critic_rate is None
