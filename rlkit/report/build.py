"""This module makes one self-contained HTML page of a study, with figures and data beside it."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import logging
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from rlkit.report import charts, svg, text
from rlkit.report.arms import Arm
from rlkit.report.cost import PHASES, costs
from rlkit.report.curves import AXIS_OF
from rlkit.report.differences import differences
from rlkit.report.environment import environment
from rlkit.report.export import export_tables
from rlkit.report.figures import draw_figures
from rlkit.report.job import State
from rlkit.report.load import Study, StudyKind, load_study
from rlkit.report.measure import SUCCESS, At
from rlkit.report.progress import JobProgress
from rlkit.report.results import Results, analyse
from rlkit.report.samples import galleries
from rlkit.report.sections import curve_groups, frontiers, result_tables
from rlkit.report.verdict import counts, headline
from rlkit.stats import MIN_SEEDS
from rlkit.tracking.files import write_atomic

_LOG = logging.getLogger(__name__)
PAGE = "report.html"


@dataclass(kw_only=True, slots=True)
class ReportOptions:
    """These are the options of `rlkit report` and `rlkit compare`."""

    baseline: str | None = None
    """Variant the others are compared with; None = the first one."""
    panel: str | None = None
    """Options, separated by commas, that split the study into panels compared apart, or `none`;
    None = the task where it differs, else the numbers among the options that differ."""
    metric: str = SUCCESS
    """Final value to compare: success, eval/NAME, or a metric of the steps."""
    margin: float = 0.02
    """Differences within ±margin count as similar, > 0; to be fixed before looking."""
    at: At = At.end
    """end, samples or seconds: compare after training, or at equal budgets."""
    out: str | None = None
    """Folder for the page, its figures and data; None = the sweep's or the run's own."""
    figures: bool = True
    """Write PNG, SVG, CSV and Parquet files beside the page."""

    @property
    def panel_keys(self) -> list[str] | None:
        """Return the metric for `analyse`; None leaves the choice to it."""
        if self.panel is None:
            return None
        return [] if self.panel == "none" else [key.strip() for key in self.panel.split(",")]


@dataclass(frozen=True, slots=True, kw_only=True)
class LivePage:
    """This record makes a page that `rlkit watch` serves: it asks for newer ones by itself."""

    every: float
    """Seconds between two questions of the browser, > 0."""
    progress: Sequence[JobProgress]
    """The jobs that run now."""
    ended: str
    """One line that says that nothing runs any more; empty while something does."""


def write_report(paths: Sequence[Path], options: ReportOptions) -> tuple[Path, str]:
    """Write `report.html` and, if asked, `report/` with figures and data.

    Returns the page and its headline.

    Raises:
        StudyError: nothing to report on, or an option that names nothing there is.
        TrackingError: a file could not be written.
    """
    study = load_study(paths)
    results = analyse_with(study, options)
    folder = Path(options.out) if options.out else study.folder or Path("rlkit-report")
    folder.mkdir(parents=True, exist_ok=True)
    if options.figures:
        beside = folder / "report"
        beside.mkdir(exist_ok=True)
        export_tables(results, beside)
        draw_figures(results, beside)
    page = folder / PAGE
    write_atomic(page, build_page(results, command=report_command(paths, options)).encode())
    return page, headline(results)


def write_page(run_dir: Path) -> Path | None:
    """Write the page of a run that has just ended, without figures.

    A failure is logged, never raised.
    """
    try:
        return write_report([run_dir], ReportOptions(figures=False))[0]
    except Exception:  # a page is not worth a run
        _LOG.warning("the report was not written", exc_info=True)
        return None


def build_page(results: Results, *, command: str = "", live: LivePage | None = None) -> str:
    """Return the page as one string: no scripts, styles, fonts or images from anywhere else.

    With `live` it has a bar, a progress table and a browser of completions besides.
    """
    study = results.study
    arms = [row.arm for row in results.rows]
    pages = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    pages.filters["soft"] = soft
    template = pages.get_template("report.html.j2")
    main, more = curve_groups(results)
    return template.render(
        policy=policy_of_page(live=live is not None),
        study=study,
        results=results,
        single=study.kind is StudyKind.run,
        headline=_headline(results, live),
        counts=counts(study),
        legend=_legend(arms),
        tables=result_tables(results),
        main_curves=main,
        first_axis=AXIS_OF[results.at].value,
        more_curves=more,
        frontiers=frontiers(results),
        costs=costs(arms),
        phases=PHASES,
        galleries=galleries(arms),
        troubles=[job for job in study.jobs if not job.done and job.state is not State.missing],
        missing=[job for job in study.jobs if job.state is State.missing],
        differences=differences(arms, baseline=results.baseline),
        environment=environment(study),
        command=command,
        written=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        min_seeds=MIN_SEEDS,
        key=svg.key,
        stack_cell=charts.stack_cell,
        text=text,
        live=live,
        style=svg.palette_css() + "".join(map(_read, ["style.css", *(["live.css"] * bool(live))])),
        script=_script(live=live is not None),
    )


def policy_of_page(*, live: bool) -> str:
    """Return what a browser may do for a page: run the script that it came with, load nothing.

    A live page asks the server that it came from.
    """
    digest = base64.b64encode(hashlib.sha256(_script(live=live).encode()).digest()).decode()
    connect = "connect-src 'self'; " if live else ""
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        f"img-src data:; {connect}base-uri 'none'; form-action 'none'"
    )


def _script(*, live: bool) -> str:
    """Return the text between the script tags of a page."""
    return "".join(map(_read, ("script.js", *(["live.js"] * live))))


def _read(name: str) -> str:
    """Return a file of the page."""
    page = importlib.resources.files("rlkit.report").joinpath("page")
    return page.joinpath(name).read_text(encoding="utf-8")


def _headline(results: Results, live: LivePage | None) -> str:
    """Return the sentence at the top; of a single run that goes on, how far it is."""
    if live is not None and live.progress and results.study.kind is StudyKind.run:
        return live.progress[0].sentence
    return headline(results)


def soft(name: str) -> Markup:
    """Return a name that may break after its joints, instead of anywhere."""
    return Markup(re.sub(r"([=_./,](?=\w))", r"\1<wbr>", str(escape(name))))


def analyse_with(study: Study, options: ReportOptions) -> Results:
    return analyse(
        study,
        metric=options.metric,
        margin=options.margin,
        baseline=options.baseline,
        panel_keys=options.panel_keys,
        at=options.at,
    )


def report_command(paths: Sequence[Path], options: ReportOptions) -> str:
    """Return the command that makes the page of `paths` with these options."""
    default = ReportOptions()
    chosen = {
        "baseline": (options.baseline, default.baseline),
        "panel": (options.panel, default.panel),
        "metric": (options.metric, default.metric),
        "margin": (options.margin, default.margin),
        "at": (options.at.value, default.at.value),
    }
    given = [f"{name}={value}" for name, (value, usual) in chosen.items() if value != usual]
    return shlex.join(["rlkit", "report", *map(str, paths), *given])


def _legend(arms: Sequence[Arm]) -> list[tuple[int, str]]:
    """Return (style, name) of every variant."""
    names = {arm.style: arm.variant for arm in arms}
    return sorted(names.items())
