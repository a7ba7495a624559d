"""The numbers of a report against numbers worked out here from the finals the runs were given."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from made_up_sweep import FINALS, write_run, write_sweep
from scipy import stats

from rlkit.report import figures
from rlkit.report.cost import costs
from rlkit.report.curves import Axis, curve
from rlkit.report.load import StudyError, load_study
from rlkit.report.measure import At, value
from rlkit.report.results import Results, analyse
from rlkit.report.sections import curve_groups
from rlkit.report.verdict import headline
from rlkit.stats import Verdict
from rlkit.tracking import Status


@pytest.fixture(scope="module")
def results(sweep: Path) -> Results:
    return analyse(load_study([sweep]))


def test_means_intervals_and_paired_differences(results: Results) -> None:
    rows = {row.arm.variant: row for row in results.panels[""]}
    base = np.array(FINALS["kl=reverse_k3"])
    for name in ("kl=unsloth_full_reverse", "kl=none", "ratio=no_detach"):
        row, finals = rows[name], np.array(FINALS[name])
        assert row.final is not None and row.comparison is not None
        assert row.final.mean == pytest.approx(finals.mean())
        difference = row.comparison.difference
        assert difference.mean == pytest.approx((finals - base).mean())
        assert difference.low is not None and difference.high is not None
        assert min(finals - base) - 1e-12 <= difference.low <= difference.mean
        assert difference.mean <= difference.high <= max(finals - base) + 1e-12
        assert row.start == pytest.approx(0.2)
    assert rows["kl=reverse_k3"].is_baseline and rows["kl=reverse_k3"].comparison is None


def test_p_values_are_holm_adjusted_t_tests_of_the_pairs(results: Results) -> None:
    names = ["kl=unsloth_full_reverse", "kl=none", "ratio=no_detach"]
    raw = [stats.ttest_rel(FINALS[n], FINALS["kl=reverse_k3"]).pvalue for n in names]
    order = np.argsort(raw)
    adjusted = np.maximum.accumulate(np.array(raw)[order] * np.array([3, 2, 1]))
    rows = {row.arm.variant: row for row in results.panels[""]}
    for index, p in zip(order, adjusted, strict=True):
        comparison = rows[names[index]].comparison
        assert comparison is not None
        assert comparison.p_different == pytest.approx(min(1.0, p))


def test_verdicts_and_remarks(results: Results) -> None:
    rows = {row.arm.variant: row for row in results.panels[""]}
    verdicts = {n: r.comparison.verdict for n, r in rows.items() if r.comparison is not None}
    assert verdicts == {
        "kl=unsloth_full_reverse": Verdict.similar,
        "kl=none": Verdict.above,
        "ratio=no_detach": Verdict.below,
        "kl=reverse_k1_reward": Verdict.too_few,
    }
    assert rows["ratio=no_detach"].remarks == (
        "never moved: gradient norm exactly 0 at every step",
    )
    assert rows["kl=reverse_k1_reward"].remarks == (
        "1 failed, 1 interrupted, 1 running, 1 not started",
    )
    alone = rows["kl=reverse_k1_reward"].final
    assert alone is not None and alone.mean == pytest.approx(0.88)
    assert alone[1:] == (None, None, 1)


def test_kl_is_the_evaluations_never_the_losss(results: Results) -> None:
    rows = {row.arm.variant: row for row in results.panels[""]}
    for index, name in enumerate(FINALS):
        found = rows[name].kl
        assert found is not None
        # The steps' own `kl` (0.004 * 11 ** 1.5) plays no part.
        assert found.mean == pytest.approx(0.0 if name == "ratio=no_detach" else 1.0 + index)


def test_the_headline_claims_what_the_seeds_allow(results: Results) -> None:
    assert headline(results) == (
        "21 of 25 jobs completed. Held-out success against kl=reverse_k3, 4 variants: "
        "1 higher (kl=none +0.056); 1 lower (ratio=no_detach −0.720); "
        "1 similar (within ±0.02) (kl=unsloth_full_reverse +0.002); 1 with too few seeds."
    )


def test_a_narrower_margin_makes_similar_inconclusive(sweep: Path) -> None:
    found = analyse(load_study([sweep]), margin=0.001)
    rows = {row.arm.variant: row for row in found.panels[""]}
    comparison = rows["kl=unsloth_full_reverse"].comparison
    assert comparison is not None and comparison.verdict is Verdict.inconclusive
    with pytest.raises(StudyError, match=r"margin must be > 0, got 0"):
        analyse(load_study([sweep]), margin=0.0)


def test_a_run_whose_samples_all_failed_has_a_report(tmp_path: Path) -> None:
    """Its evaluations have no value, which is what the report has to show."""
    write_run(tmp_path / "run", seed=0, final=0.5, bad=True)
    found = analyse(load_study([tmp_path / "run"]))
    (row,) = found.rows
    assert [math.isnan(value) for value in row.values.values()] in ([True], [])
    assert "0.200 → –" in headline(found)
    with pytest.raises(StudyError, match="metric must be one the runs have, got eval/nothing"):
        analyse(load_study([tmp_path / "run"]), metric="eval/nothing")


def test_another_metric_and_another_baseline(sweep: Path) -> None:
    found = analyse(load_study([sweep]), metric="eval/kl", baseline="kl=none")
    rows = {row.arm.variant: row for row in found.panels[""]}
    comparison = rows["kl=reverse_k3"].comparison
    assert comparison is not None
    assert comparison.difference.mean == pytest.approx(1.0 - 3.0)
    with pytest.raises(StudyError, match="metric must be one the runs have, got rward"):
        analyse(load_study([sweep]), metric="rward")


def test_equal_budgets_are_those_that_every_completed_run_has(tmp_path: Path) -> None:
    jobs = []
    for index, (variant, final) in enumerate((("kl=a", 0.8), ("kl=b", 0.9))):
        for seed in range(5):
            name = f"{index:06x}{seed:06x}"
            jobs.append((name, [variant, f"seed={seed}"]))
            folder = tmp_path / "s/jobs" / name
            write_run(folder, seed=seed, final=final + 0.01 * seed, evals=(0, 4, 8, 12))
            if variant == "kl=b":  # costs twice the time
                for file in ("metrics.jsonl", "evals.jsonl"):
                    lines = [json.loads(x) for x in (folder / file).read_text().splitlines()]
                    slower = {"time/step": 35.16} if file == "metrics.jsonl" else {}
                    lines = [
                        x | slower | ({"time/train": 2 * x["time/train"]} if not slower else {})
                        for x in lines
                    ]
                    (folder / file).write_text("".join(json.dumps(x) + "\n" for x in lines))
    write_sweep(tmp_path / "s", jobs)
    study = load_study([tmp_path / "s"])
    first, second = analyse(study, at=At.seconds).rows
    # Both have 17.5 s x 12: all of a's training, half of b's.
    assert analyse(study, at=At.seconds).limits[""] == pytest.approx(210.0)
    assert first.final is not None and second.final is not None
    assert first.final.mean == pytest.approx(0.82)
    assert second.final.mean == pytest.approx(0.2 + (0.92 - 0.2) / 2)
    assert second.kl is not None and second.kl.mean == pytest.approx(0.75)
    assert second.verdict is Verdict.below
    drawn = figures._curves(analyse(study, at=At.seconds))
    assert drawn is not None and drawn.axes[0].get_xlabel() == "training time [s]"
    assert [line.get_xdata().max() for line in drawn.axes[0].lines] == [210, 420]
    first, second = analyse(study, at=At.samples).rows
    assert second.final is not None and second.final.mean == pytest.approx(0.92)
    assert "held-out success at equal samples" in headline(analyse(study, at=At.samples)).lower()


def test_costs_count_the_steps_that_were_not_logged(tmp_path: Path) -> None:
    write_run(tmp_path / "run", seed=0, final=0.9)
    path = tmp_path / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["time/step"] = 100.0  # the first step compiles
    text = "".join(json.dumps(line) + "\n" for line in lines if line["step"] in (0, 5, 11))
    path.write_text(text)
    study = load_study([tmp_path / "run"])
    (found,) = costs([row.arm for row in analyse(study).rows])
    assert found.step_seconds == pytest.approx((100.0 + 11 * 17.58) / 12)
    assert found.total_seconds == pytest.approx(210.0)  # what the last evaluation says
    assert found.phases["generate"] == pytest.approx(9.1)
    assert found.memory_bytes == pytest.approx(1.9 * 2**30) and not found.on_device
    assert sum(share for _, share in found.shares) == pytest.approx(1.0)


def test_the_area_under_the_curve_by_hand(tmp_path: Path) -> None:
    write_run(tmp_path / "run", seed=0, final=0.8, evals=(0, 4, 12))
    study = load_study([tmp_path / "run"])
    (row,) = analyse(study, metric="auc").rows
    # A straight line from .2 to .8, whatever the distance of the evaluations.
    assert row.final is not None and row.final.mean == pytest.approx(0.5)
    job = study.jobs[0]
    # Up to half of the samples it rises to .5 only.
    assert value(job, "auc", at=At.samples, limit=288.0) == pytest.approx(0.35)


def test_equal_budgets_need_evaluations_that_say_their_cost(tmp_path: Path) -> None:
    write_run(tmp_path / "run", seed=0, final=0.9)
    lines = [json.loads(x) for x in (tmp_path / "run/evals.jsonl").read_text().splitlines()]
    for line in lines:
        del line["samples"]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "run/evals.jsonl").write_text(text)
    with pytest.raises(StudyError, match="at must be end: run did not record samples"):
        analyse(load_study([tmp_path / "run"]), at=At.samples)


def test_curves_are_means_over_completed_seeds(results: Results) -> None:
    arm = results.panels[""][0].arm
    found = curve(arm, "success", Axis.samples)
    assert found is not None and found.low is not None
    np.testing.assert_allclose(found.x, [0, 192, 384, 576])
    finals = np.array(FINALS[arm.variant])
    expected = [np.mean(0.2 + (finals - 0.2) * s / 12) for s in (0, 4, 8, 12)]
    np.testing.assert_allclose(found.mean, expected)
    assert found.traces == ()


def test_few_or_unfinished_seeds_are_drawn_one_by_one(results: Results) -> None:
    arm = results.panels[""][4].arm
    found = curve(arm, "reward", Axis.steps)
    assert found is not None and found.low is None
    assert sorted(len(t.x) for t in found.traces) == [5, 5, 5, 12]
    assert len(found.mean) == 12


def test_a_seed_that_became_nan_is_left_out_and_said_so(tmp_path: Path) -> None:
    jobs = []
    for seed in range(6):
        jobs.append((f"{seed:012x}", ["kl=none", f"seed={seed}"]))
        write_run(tmp_path / "s/jobs" / jobs[-1][0], seed=seed, final=0.9, bad=seed == 2)
    write_sweep(tmp_path / "s", jobs)
    (row,) = analyse(load_study([tmp_path / "s"])).rows
    assert sorted(row.values) == [0, 1, 3, 4, 5]
    assert row.remarks == ("1 without a finite value",)
    assert row.final is not None and row.final.mean == pytest.approx(0.9)


def test_the_rank_of_no_adapter_is_no_part_of_a_name(tmp_path: Path) -> None:
    """A sweep over ranks and `model.tuning=full` needs some rank there; it does nothing."""
    names = ["model.lora.rank=1", "model.tuning=full,model.lora.rank=16"]
    jobs = []
    for index, name in enumerate(names):
        jobs.append((f"{index:012x}", [*name.split(","), "seed=0"]))
        tuning = {"tuning": "full" if index else "lora", "lora": {"rank": 16 if index else 1}}
        run = tmp_path / "s/jobs" / jobs[-1][0]
        write_run(run, seed=0, final=0.9, options={"model": tuning})
    write_sweep(tmp_path / "s", jobs)
    (tmp_path / "s/sweep.json").rename(tmp_path / "sweep.json")
    plain = analyse(load_study([tmp_path / "s"]))
    (tmp_path / "sweep.json").rename(tmp_path / "s/sweep.json")
    asked = analyse(load_study([tmp_path / "s"]))
    assert [row.arm.variant for row in asked.rows] == ["model.lora.rank=1", "model.tuning=full"]
    assert [row.arm.variant for row in plain.rows] == [
        "model.lora.rank=1, model.tuning=lora",
        "model.tuning=full",
    ]


def grid_of(folder: Path, axes: list[list[str]]) -> Results:
    """A sweep of one seed over `axes`; KL counts the jobs from 1."""
    jobs = []
    for index, choice in enumerate(itertools.product(*axes)):
        jobs.append((f"{index:012x}", [*choice, "seed=0"]))
        write_run(folder / "jobs" / jobs[-1][0], seed=0, final=0.9, kl=float(index + 1))
    write_sweep(folder, jobs)
    return analyse(load_study([folder]))


def kls(results: Results) -> dict[str, list[float]]:
    return {
        name: [row.kl.mean for row in rows if row.kl is not None]
        for name, rows in results.frontiers.items()
    }


def test_a_frontier_joins_one_option_and_has_a_chart_for_each_value_of_others(
    tmp_path: Path,
) -> None:
    betas, epochs = ["kl.beta=0.1", "kl.beta=1"], ["epochs=1", "epochs=4"]
    found = grid_of(tmp_path / "a", [["kl=a", "kl=b"], betas, epochs])
    assert kls(found) == {"epochs=1": [1, 5, 3, 7], "epochs=4": [2, 6, 4, 8]}
    assert kls(grid_of(tmp_path / "b", [["kl=a", "kl=b"], betas])) == {"": [1, 3, 2, 4]}
    tasks = grid_of(tmp_path / "c", [["task=echo", "task=rev"], ["kl=a", "kl=b"]])
    assert kls(tasks) == {"task=echo": [1, 2], "task=rev": [3, 4]}
    (one,) = kls(grid_of(tmp_path / "d", [["kl=a", "kl=b"]])).values()
    assert one == [1, 2]


def test_a_legend_of_many_variants_leaves_the_charts_their_height(tmp_path: Path) -> None:
    variants = [f"kl=a_name_of_usual_length_{i}" for i in range(17)]
    results = grid_of(tmp_path / "s", [variants, ["kl.beta=0.1", "kl.beta=1"]])
    figure = figures._frontier(results)
    assert figure is not None
    figure.canvas.draw()
    (axis,) = figure.axes
    assert axis.get_window_extent().height / figure.dpi > 2.0
    assert figure.legends[0].get_window_extent().y0 >= 0


def test_a_legend_of_long_names_fits_into_the_figure(tmp_path: Path) -> None:
    first = "generator.kv_cache_dtype=auto,generator.quantization=nf4,correction=sequence_"
    results = grid_of(tmp_path / "s", [[f"{first}tis", f"{first}mask"]])
    for figure in (figures._curves(results), figures._frontier(results)):
        assert figure is not None
        figure.canvas.draw()
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_the_label_of_the_differences_fits_into_the_figure(tmp_path: Path) -> None:
    name = "kl=" + "a baseline of many words, " * 5
    results = grid_of(tmp_path / "s", [[name, "kl=other"]])
    figure = figures._differences(results)
    assert figure is not None
    figure.canvas.draw()
    box = figure._supxlabel.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0


def test_aggregates_over_three_tasks_of_five_seeds(tmp_path: Path) -> None:
    finals = {"algorithm=a": 0.5, "algorithm=b": 0.7}
    jobs = []
    for task in ("x", "y", "z"):
        for variant, final in finals.items():
            for seed in range(5):
                name = f"{task}{variant[-1]}{seed:010x}"
                jobs.append((name, [f"task={task}", variant, f"seed={seed}"]))
                value = final + 0.01 * seed + (0.3 if task == "z" else 0.0)
                write_run(tmp_path / "s/jobs" / name, seed=seed, final=value)
    write_sweep(tmp_path / "s", jobs)
    found = analyse(load_study([tmp_path / "s"]))
    assert found.no_aggregates == ""
    first, second = found.aggregates
    scores = [0.5 + 0.01 * s + d for d in (0, 0, 0.3) for s in range(5)]
    assert first.iqm.mean == pytest.approx(stats.trim_mean(scores, 0.25))
    assert first.improvement is None
    assert second.improvement == (1.0, 1.0, 1.0, 3)
    fewer = load_study([tmp_path / "s"])
    assert "takes 3 tasks, there are 1" not in headline(analyse(fewer))


def test_without_enough_tasks_or_seeds_there_is_a_reason(tmp_path: Path) -> None:
    jobs = []
    for task in ("x", "y", "z"):
        name = f"{task:0>12}"
        jobs.append((name, [f"task={task}", "algorithm=a", "seed=0"]))
        write_run(tmp_path / "s/jobs" / name, seed=0, final=0.9)
    write_sweep(tmp_path / "s", jobs)
    found = analyse(load_study([tmp_path / "s"]))
    assert found.aggregates == []
    assert found.no_aggregates == ("it takes 5 seeds of every variant on every task, one has 1")


def test_headlines_of_other_studies(tmp_path: Path) -> None:
    write_run(tmp_path / "one", seed=0, final=0.9, status=Status.failed, steps=2, evals=(0,))
    assert headline(analyse(load_study([tmp_path / "one"]))) == (
        "0 of 1 job completed. No run has completed yet."
    )
    for seed in range(2):
        for name, final in (("a", 0.9), ("b", 0.8)):
            options = {"kl": {"estimator": name}}
            write_run(tmp_path / f"few/{name}{seed}", seed=seed, final=final, options=options)
    assert headline(analyse(load_study([tmp_path / "few"]))) == (
        "At most 2 seeds a variant: points, no intervals and no verdict (that takes 5). "
        "Highest mean held-out success: kl.estimator=a, 0.900."
    )
    write_run(tmp_path / "done", seed=0, final=0.9)
    text = headline(analyse(load_study([tmp_path / "done"])))
    assert text.startswith("Held-out success 0.200 → 0.900 (+")
    assert text.endswith("One seed: it says nothing about others.")
    assert not math.isnan(float(text.split()[2]))


def test_the_curves_are_of_what_is_compared(sweep: Path, results: Results) -> None:
    main, _ = curve_groups(results)
    titles = [group.title for group in main]
    kl = "KL(policy ‖ reference), on fresh samples, nats a completion"
    assert titles == ["held-out success", "training reward", kl]
    main, _ = curve_groups(analyse(load_study([sweep]), metric="eval/entropy"))
    assert [group.title for group in main] == ["held-out entropy", *titles[1:]]
