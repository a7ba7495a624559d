"""A real browser opens reports full of hostile text: nothing runs, nothing is loaded.

Chromium says so itself: in the document after its scripts have run, in its console, and by what it
asks of a server on loopback.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from made_up_sweep import write_run, write_sweep
from tracked_run import evaluation, info, record

from rlkit.report.build import ReportOptions, write_page, write_report
from rlkit.tracking import Redactor, SampleRow, Status
from rlkit.tracking.local import LocalTracker

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
PWNED = "rlkit-was-here"


class Server(ThreadingHTTPServer):
    daemon_threads = True
    asked: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server(("127.0.0.1", 0), Handler)
    found.asked = []
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def hostile(server: Server) -> str:
    """Every way that we know of to run a script or to load something, in one text."""
    url, code = f"http://127.0.0.1:{server.server_address[1]}", f"document.title='{PWNED}'"
    return "\n".join(
        [
            f"<script>{code}</script>",
            f"</script><script>{code}</script>",
            f'</td></table><img src="x" onerror="{code}">',
            f"\"><svg onload=\"{code}\"> '><body onload='{code}'>",
            f"</title><script>{code}</script></style><script>{code}</script>",
            f"<img src='{url}/img'><link rel=stylesheet href='{url}/css'>",
            f"<style>@import '{url}/import'; body {{ background: url({url}/background) }}</style>",
            f"<iframe src='{url}/frame'></iframe><object data='{url}/object'></object>",
            f"<meta http-equiv=refresh content='0;url={url}/refresh'><base href='{url}/base'>",
            f'<a href="javascript:{code}" autofocus onfocus="{code}">x</a>',
            f"<details open ontoggle=\"{code}\">x</details><math><mi xlink:href='{url}/m'></math>",
            "{{ 7 * 7 }} {% raw %} <!-- --> ]]> \u2028 \u2029 \x1b[31m \x00",
        ]
    )


def browse(page: Path, tmp_path: Path) -> tuple[str, str]:
    """The document after its scripts have run, and the browser's console."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            *(f"--user-data-dir={tmp_path / 'browser'}", "--disable-background-networking"),
            *("--virtual-time-budget=3000", "--dump-dom", page.resolve().as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0 and done.stdout, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, "\n".join(console)


def run_with(folder: Path, text: str) -> None:
    """A run whose names, samples, columns and end hold `text`."""

    def spoilt(row: SampleRow) -> SampleRow:
        columns = {text[:40]: text, "answer": text}
        return replace(row, prompt=text, completion=text, columns=columns, finish_reason=text[:20])

    folder.mkdir()
    config = {"seed": 0, "steps": 12, "task": {"name": text}, "model": {"source": text}}
    (folder / "config.yaml").write_text(json.dumps(config))
    tracker = LocalTracker(folder, Redactor(), completions=True, plot=False)
    about = replace(info(folder), task=text, model=text, algorithm=text, device=text)
    tracker.start(replace(about, name=text, config=config, reward_names=(text, "b")))
    for label, step in (("before", 0), ("after", 2)):
        found = evaluation(label, step, rate=0.5, num_prompts=4)
        tracker.evaluation(replace(found, samples=[spoilt(row) for row in found.samples]))
    for step in range(2):
        made = record(step)
        metrics = {**made.metrics, f"rewards/{text}/mean": 1.0}
        tracker.step(
            replace(made, metrics=metrics, samples=[spoilt(row) for row in made.samples[:8]])
        )
    tracker.close(5.0)
    ended = {"status": Status.failed.value, "message": text, "pid": 1, "time": 1.0}
    (folder / "status.json").write_text(json.dumps(ended))


def test_the_browser_would_notice(server: Server, tmp_path: Path) -> None:
    page = tmp_path / "naive.html"
    page.write_text(f"<!doctype html><title>t</title><body>{hostile(server)}</body>")
    document, _ = browse(page, tmp_path)
    assert f"<title>{PWNED}</title>" in document
    assert "/img" in server.asked


def test_a_runs_page_runs_and_loads_nothing(server: Server, tmp_path: Path) -> None:
    run_with(tmp_path / "run", hostile(server))
    page = write_page(tmp_path / "run")
    assert page is not None and PWNED in page.read_text(), "the text must be on the page"
    document, console = browse(page, tmp_path)
    assert f"<title>{PWNED}" not in document
    assert server.asked == []
    assert console == "", "its own script must run, and nothing be refused"


def test_a_sweeps_page_runs_and_loads_nothing(server: Server, tmp_path: Path) -> None:
    text = hostile(server)
    sweep, jobs = tmp_path / "sweep", []
    for number, seed in enumerate((0, 1, 0, 1)):
        estimator = text if number > 1 else "k3"
        name = f"{number:012x}"
        status = Status.failed if number == 3 else Status.completed
        write_run(
            sweep / "jobs" / name,
            seed=seed,
            final=0.5 + 0.1 * number,
            status=status,
            message=text,
            options={"kl": {"estimator": estimator}},
        )
        jobs.append((name, [f"kl.estimator={estimator}", f"seed={seed}"]))
    write_sweep(sweep, jobs, name=text)
    page, _ = write_report([sweep], ReportOptions())
    assert PWNED in page.read_text()
    document, console = browse(page, tmp_path)
    assert f"<title>{PWNED}" not in document
    assert server.asked == []
    assert console == ""
