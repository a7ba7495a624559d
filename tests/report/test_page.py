"""The page: valid, self-contained, with the numbers in it, for every kind of study."""

from __future__ import annotations

import csv
import fcntl
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import cast

import pyarrow.parquet as pq
import pytest
from made_up_sweep import FINALS, write_run, write_sweep
from report_page import check

from rlkit.report.build import ReportOptions, build_page, write_page, write_report
from rlkit.report.load import load_study
from rlkit.report.measure import At
from rlkit.report.results import analyse
from rlkit.tracking import Status
from rlkit.tracking.base import Passage
from rlkit.tracking.completions import read_samples, write_samples


@pytest.fixture(scope="module")
def page_of_sweep(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    path, _ = write_report([sweep], ReportOptions(out=str(out)))
    return path


def test_the_page_of_a_sweep_holds_its_numbers(page_of_sweep: Path) -> None:
    page = check(page_of_sweep)
    for finals in FINALS.values():
        assert f"{sum(finals) / len(finals):.3f}" in page.words
    for text in ("+0.056", "−0.720", "similar", "higher", "lower", "too few seeds", "inconclusive"):
        assert text in page.words
    assert "never moved: gradient norm exactly 0 at every step" in page.words
    assert "21 of 25 jobs completed" in page.words
    assert page_of_sweep.stat().st_size < 600_000


def test_what_failed_is_shown_and_nothing_a_run_wrote_is_code(page_of_sweep: Path) -> None:
    page = check(page_of_sweep)
    assert "OutOfMemoryError: <script>alert(1)</script> & co" in page.words
    assert page.scripts == 1
    assert "not started" in page.words and "SIGINT after step 4" in page.words
    # rich markup, chat templates and tags in completions are text as well
    assert "<|im_start|>user" in page.words and "<answer>w1000</answer>" in page.words
    assert "hf_canary123456" not in page_of_sweep.read_text()


def test_configurations_differ_where_they_do(page_of_sweep: Path) -> None:
    source = page_of_sweep.read_text()
    assert "<mark>no_detach</mark>" in source and "<mark>reverse_k3</mark>" not in source
    assert "kl.beta = 0.04" in source


def test_curves_come_over_steps_samples_and_seconds_and_can_be_hidden(page_of_sweep: Path) -> None:
    source = page_of_sweep.read_text()
    for axis in ("steps", "samples", "seconds"):
        # success, training reward, KL
        assert source.count(f'<div class="on-{axis}"><svg') == 3
    assert source.count("data-toggle=") == 5
    assert source.count('aria-label="held-out success: 5 curves over training steps"') == 1


@pytest.mark.parametrize(("at", "axis"), [("end", "steps"), ("seconds", "seconds")])
def test_curves_are_first_over_what_the_variants_are_compared_at(
    sweep: Path, at: str, axis: str
) -> None:
    source = build_page(analyse(load_study([sweep]), at=At(at)))
    assert f'id="by-{axis}" checked' in source and source.count(" checked><label") == 1


def test_a_keyboard_finds_everything(page_of_sweep: Path) -> None:
    source = page_of_sweep.read_text()
    assert source.index('class="skip" href="#main"') < source.index("<header")
    for block in re.findall(r'<div class="scroll"[^>]*>', source):
        assert 'tabindex="0"' in block and "aria-label=" in block
    for drawing in re.findall(r"<svg[^>]*>", source):
        assert "aria-label=" in drawing or 'aria-hidden="true"' in drawing
    assert ":focus-visible" in source


def test_data_and_figures_lie_beside_the_page(page_of_sweep: Path) -> None:
    folder = page_of_sweep.parent / "report"
    names = {path.name for path in folder.iterdir()}
    figures = {f"{n}.{s}" for n in ("curves", "frontier", "differences") for s in ("png", "svg")}
    tables = {
        f"{n}.{s}" for n in ("runs", "variants", "evals", "steps") for s in ("csv", "parquet")
    }
    assert names == figures | tables
    for name in figures:
        data = (folder / name).read_bytes()
        assert data.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    with io.StringIO((folder / "runs.csv").read_text()) as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == 25
    found = [float(run["success"]) for run in runs if run["variant"] == "kl=none"]
    assert found == pytest.approx(FINALS["kl=none"])
    assert [run["state"] for run in runs[-4:]] == [
        "failed",
        "running",
        "interrupted",
        "not started",
    ]
    steps = pq.read_table(folder / "steps.parquet").to_pylist()
    assert len(steps) == 21 * 12 + 3 * 5
    assert cast(float, steps[11]["samples"]) == 576.0
    variants = pq.read_table(folder / "variants.parquet").to_pylist()
    assert [v["verdict"] for v in variants] == [
        None,
        "similar",
        "higher",
        "lower",
        "too few seeds",
    ]


def test_the_same_study_gives_the_same_data_twice(page_of_sweep: Path, sweep: Path) -> None:
    folder = page_of_sweep.parent / "report"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_report([sweep], ReportOptions(out=str(page_of_sweep.parent)))
    for name in ("runs.csv", "variants.csv", "steps.csv", "evals.csv"):
        assert (folder / name).read_bytes() == before[name]


def test_the_page_of_one_run(tmp_path: Path) -> None:
    write_run(tmp_path / "run", seed=0, final=0.91, evals=(0, 4, 12), completions=True)
    path = write_page(tmp_path / "run")
    assert path == tmp_path / "run" / "report.html"
    page = check(path)
    assert "Held-out success 0.200 → 0.910" in page.words
    assert "over 64 prompts" in page.words
    assert "Completions before and after" in page.words
    assert "Across tasks" not in page.words and "paired by seed, against" not in page.words
    assert sorted(p.name for p in (tmp_path / "run").glob("report*")) == ["report.html"]


@pytest.mark.parametrize("status", [Status.failed, Status.interrupted, Status.running])
def test_the_page_of_a_run_without_a_single_step(tmp_path: Path, status: Status) -> None:
    write_run(tmp_path / "run", seed=0, final=0.9, steps=0, evals=(), status=status, message="why")
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a running job would
        path = write_page(tmp_path / "run")
    assert path is not None
    page = check(path)
    assert "No run has completed yet." in page.words and "why" in page.words


def test_pages_of_one_variant_of_nan_and_of_no_kl(tmp_path: Path) -> None:
    for seed in range(5):
        write_run(tmp_path / f"runs/{seed}", seed=seed, final=0.9, kl=None, bad=seed == 0)
    path, headline = write_report([tmp_path / "runs"], ReportOptions())
    page = check(path)
    assert headline == "Held-out success 0.200 → 0.900, 4 seeds."
    assert "1 without a finite value" in page.words
    assert "Reward against KL" not in page.words
    assert path == tmp_path / "runs" / "report.html"


def test_names_that_are_code_stay_names(tmp_path: Path) -> None:
    names = ["note=<img src=x onerror=alert(1)>", 'note="><script>alert(2)</script>']
    jobs = [(f"{i:012x}", [name, "seed=0"]) for i, name in enumerate(names)]
    for job, _ in jobs:
        write_run(tmp_path / "s/jobs" / job, seed=0, final=0.9, evals=(0, 4, 12))
    write_sweep(tmp_path / "s", jobs, name="<b>bold</b>")
    path, _ = write_report([tmp_path / "s"], ReportOptions())
    page = check(path)
    assert page.scripts == 1 and "<b>bold</b>" in page.words
    for name in names:
        assert name in page.words
    assert (tmp_path / "s/report/curves.png").stat().st_size > 10_000


def test_an_episode_is_shown_turn_by_turn_whatever_was_said(tmp_path: Path) -> None:
    """Sampled and other text stand apart; hostile and long words stay words."""
    run = tmp_path / "run"
    write_run(run, seed=0, final=0.9, evals=(0, 4, 12), completions=True)
    evil = "</pre><script>alert(1)</script><|im_end|>"
    said = (
        Passage("<tool_call>first call</tool_call>", True, 0.25),
        Passage(evil, False),
        Passage("word " * 5000, True),
        Passage("x" * 9000, False),
        Passage("the last words", True, -1.0),
    )
    changed = 0
    for path in (run / "completions").glob("*eval*.parquet"):
        rows = [replace(row, passages=said) for row in read_samples(path)]
        write_samples(path, rows, ["r"] * len(rows[0].components))
        changed += 1
    assert changed == 3
    path, _ = write_report([run], ReportOptions())
    page, html = check(path), path.read_text()
    # Three prompts, each before and after.
    assert html.count('<pre class="said">') == 3 * 2 * 3
    assert html.count("Indented text is the environment") == 1
    assert html.count('<pre class="heard">') == 3 * 2 * 2
    assert evil in page.words and "<tool_call>first call</tool_call>" in page.words
    assert '<pre class="heard">&lt;/pre&gt;&lt;script&gt;' in html
    assert html.count("+0.25") == 6 and html.count("-1.00") + html.count("−1.00") == 6
    assert "x" * 9000 not in html and len(html) < 400_000


def test_a_page_that_cannot_be_written_does_not_raise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert write_page(tmp_path / "nowhere") is None
    assert "the report was not written" in caplog.text
