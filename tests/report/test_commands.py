"""`rlkit report` and `rlkit compare` as they are typed."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path

import pytest
from made_up_sweep import write_run
from rich.console import Console

from rlkit.cli import run
from rlkit.report.build import ReportOptions, analyse_with
from rlkit.report.load import load_study
from rlkit.report.terminal import print_results


def test_report_prints_the_headline_and_the_page(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["report", str(sweep), f"out={tmp_path / 'x'}", "figures=false", "margin=0.05"]
    assert run(arguments) == 0
    headline, page = capsys.readouterr().out.splitlines()
    assert "similar (within ±0.05)" in headline
    assert page == str(tmp_path / "x" / "report.html")
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["report.html"]
    assert f"rlkit report {sweep} margin=0.05" in Path(page).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report"], "name a run folder, a sweep folder, or several of them"),
        (["report", "/nowhere"], "there is no folder /nowhere"),
        (["report", "margn=1"], "margn is not an option; there are baseline, panel, metric"),
        (["report", "margin=small"], "margin must be a number, got small"),
        (["report", "figures=7"], "figures must be true or false, got 7"),
        (["report", "at=dawn"], "at must be one of end, samples, seconds, got dawn"),
        (["compare", "out=x"], "out is not an option; there are baseline, panel, metric"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"rlkit: {message}") and error.count("\n") == 1


def test_a_full_disk_is_exit_code_1(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(sweep), "out=/proc/nothing"]) == 1
    assert capsys.readouterr().err.startswith("rlkit: ")


def test_compare_shows_the_variants_of_a_sweep(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    before = sorted(sweep.rglob("*"))
    assert run(["compare", str(sweep)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "│ ratio=no_detach" in line]
    for text in ("5/5", "0.200", "−0.720", "< 0.001", "lower"):
        assert text in line
    assert any("failed OutOfMemoryError" in line for line in lines)
    assert sorted(sweep.rglob("*")) == before


def test_compare_fits_80_columns_and_is_one_line_a_variant_in_a_pipe(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = analyse_with(load_study([sweep]), ReportOptions())
    terminal = Console(width=80, force_terminal=True, no_color=True, file=StringIO())
    print_results(terminal, results)
    assert isinstance(terminal.file, StringIO)
    lines = re.sub("\x1b[^m]*m", "", terminal.file.getvalue()).splitlines()
    above = lines.index("ratio=no_detach")
    numbers, intervals = lines[above + 1].split(), lines[above + 2].split("]")
    assert numbers[:6] == ["5/5", "0.200", "0.200", "−0.720", "<", "0.001"] and "lower" in numbers
    assert [text.count(",") for text in intervals] == [1, 1, 0]
    table = lines[lines.index(next(line for line in lines if "seeds before" in line)) :]
    assert [line for line in table if len(line) > 80 or "…" in line] == []
    assert run(["compare", str(sweep)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "│ ratio=no_detach" in line]
    assert line.endswith("│") and "[" in line and "…" not in line


def test_compare_pairs_two_sides_by_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    for seed in range(5):
        write_run(tmp_path / f"a/{seed}", seed=seed, final=0.5 + 0.05 * seed)
        options = {"kl": {"beta": 0.4}}
        final = 0.55 + 0.05 * seed + 0.001 * (seed % 2)
        write_run(tmp_path / f"b/{seed + 2}", seed=seed + 2, final=final + 0.1, options=options)
    assert run(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("│ b ")]
    # Seeds 2, 3, 4 are shared: .65 - .6, .701 - .65, .75 - .7
    assert "+0.050" in line and "too few seeds" in line
    assert "kl.beta" in out and "0.4" in out


def test_compare_of_two_runs_has_an_interval_over_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    write_run(tmp_path / "a", seed=0, final=0.9)
    write_run(tmp_path / "b", seed=0, final=0.5)
    assert run(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "b: −0." in out and "over the held-out prompts both share" in out


@pytest.mark.parametrize("kept", [True, False])
def test_runs_without_prompt_hashes_are_paired_by_the_prompts_they_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: bool
) -> None:
    """Older versions recorded indices alone, which name other prompts in another run."""
    for name in ("a", "b"):
        write_run(tmp_path / name, seed=0, final=0.9, completions=kept)
        evals = tmp_path / name / "evals.jsonl"
        lines = [json.loads(line) for line in evals.read_text().splitlines()]
        old = [
            {k: v for k, v in line.items() if k not in ("prompt_keys", "measure")} for line in lines
        ]
        evals.write_text("".join(json.dumps(line) + "\n" for line in old))
    assert run(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert ("held-out prompts both share, 64 of them" in out) is kept
    assert ("none can be paired" in out) is not kept


@pytest.mark.parametrize("command", ["report", "compare"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert f"rlkit {command} " in capsys.readouterr().out
