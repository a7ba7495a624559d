"""`rlkit watch`: over HTTP, with a run folder that grows between two requests."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from cli_process import command, environment
from growing_run import GrowingRun, serving
from made_up_sweep import write_run
from report_page import check

from rlkit.cli import run
from rlkit.report.build import ReportOptions
from rlkit.report.live.server import LiveServer
from rlkit.report.live.watcher import Watcher

Answer = tuple[int, dict[str, str], bytes]


def get(server: LiveServer, path: str = "/", **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def newer(server: LiveServer, tag: str) -> Answer:
    """The page once it is another than `tag`."""
    end = time.monotonic() + 20
    while (found := get(server, If_None_Match=tag))[0] == 304:
        assert time.monotonic() < end, "the page stayed as it was"
        time.sleep(0.05)
    return found


def samples(server: LiveServer, **query: object) -> dict[str, Any]:
    status, headers, body = get(server, f"/samples?{urlencode(query)}")
    assert status == 200 and headers["Content-Type"].startswith("application/json")
    found: dict[str, Any] = json.loads(body)
    return found


def reward_points(page: str) -> int:
    """How many points the curve of the training reward over steps has."""
    chart = re.search(r'aria-label="training reward: 1 curve over training steps">.*?</svg>', page)
    assert chart is not None
    path = re.search(r'<path class="(?:thin|line) s0"[^>]* d="M([^"]*)"', chart[0])
    return 0 if path is None else path[1].count("L") + 1


def test_the_page_follows_a_run_that_grows(tmp_path: Path) -> None:
    with GrowingRun(tmp_path / "mine") as growing:
        growing.evaluate("before", rate=0.2)
        growing.steps(3)
        with serving(tmp_path / "mine") as server:
            status, headers, body = get(server)
            first = body.decode()
            assert status == 200 and "Step 3 of 40: mean reward" in first
            assert reward_points(first) == 3 and "1 running" in first
            assert get(server, If_None_Match=headers["ETag"])[0] == 304
            growing.steps(4)
            growing.evaluate("step 7", rate=0.6)
            _, headers, body = newer(server, headers["ETag"])
            assert reward_points(body.decode()) == 7 and "Step 7 of 40" in body.decode()
            assert server.watcher.ended() == ""
            growing.end()
            _, headers, body = newer(server, headers["ETag"])
            assert "The run has ended: completed, 7 steps" in body.decode()
            assert server.watcher.ended() == "the run has ended: completed, 7 steps"
    assert not (tmp_path / "mine" / "report.html").exists(), "a watch writes nothing"


def test_the_live_page_is_one_file_and_hostile_text_stays_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\ud800"
    name = "a<b>&\"'"
    with GrowingRun(tmp_path / name, hostile=evil) as growing:
        growing.evaluate("before", rate=0.2)
        growing.steps(2)
        with serving(tmp_path / name) as server:
            _, headers, body = get(server)
            path = tmp_path / "page.html"
            # The report's own check, but for the two questions that the page asks its server.
            asked = body.decode().replace('fetch("/"', "").replace('fetch("/samples?"', "")
            path.write_text(asked)
            page = check(path)
            assert page.scripts == 1 and name in page.words
            found = samples(server)
            assert found["rows"][0]["completion"].startswith("<script>alert(1)</script><img")
            assert b"<script>alert" not in body
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy
    (digest,) = re.findall(r"script-src '(sha256-[^']*)';", policy)
    assert len(digest) == 51 and "unsafe-inline'" not in policy.split("style-src")[0]


def test_completions_are_paged_filtered_and_ordered(tmp_path: Path) -> None:
    with GrowingRun(tmp_path / "mine") as growing, serving(tmp_path / "mine") as server:
        assert samples(server)["total"] == 0 and samples(server)["pages"] == 1
        growing.evaluate("before", rate=0.2)
        growing.steps(2)
        newer(server, "")
        found = samples(server)
        assert [file["id"] for file in found["files"]] == [
            "step-000001.parquet",
            "step-000000.parquet",
            "eval-before-000000.parquet",
        ]
        assert found["file"] == "step-000001.parquet"
        # 6 prompts x 8 samples, ten on a page
        assert (found["total"], found["found"], found["pages"]) == (48, 48, 5)
        places = [
            (r["index"], r["sample"]) for k in range(5) for r in samples(server, page=k)["rows"]
        ]
        assert places == [(prompt, sample) for prompt in range(6) for sample in range(8)]
        assert samples(server, page=99)["page"] == 4
        only = samples(server, text="W3")
        assert only["found"] == 8 and {r["index"] for r in only["rows"]} == {3}
        best = [float(r["reward"]) for r in samples(server, order="highest")["rows"]]
        assert best == sorted(best, reverse=True)
        worst = [float(r["reward"]) for r in samples(server, order="lowest")["rows"]]
        assert worst == sorted(worst) and worst[0] < best[0]
        assert samples(server, cut=1)["found"] == 0
        before = samples(server, file="eval-before-000000.parquet")
        assert before["total"] == 128 and before["rows"][0]["index"] == 1000


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/mine/config.yaml",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "//[",
        "/samples/../secret.parquet",
    ],
)
def test_no_path_of_a_request_is_followed(tmp_path: Path, path: str) -> None:
    write_run(tmp_path / "mine", seed=0, final=0.9, completions=True)
    with serving(tmp_path / "mine") as server:
        assert get(server, path)[0] == 404


@pytest.mark.parametrize("file", ["../../secret.parquet", "/etc/passwd", "..", "\0", "link"])
def test_a_query_names_only_what_was_offered(tmp_path: Path, file: str) -> None:
    write_run(tmp_path / "mine", seed=0, final=0.9, completions=True)
    write_run(tmp_path / "other", seed=1, final=0.9, completions=True)
    inside = tmp_path / "mine" / "completions"
    secret = tmp_path / "other" / "completions" / "step-000011.parquet"
    (inside / "step-999999.parquet").symlink_to(secret)
    with serving(tmp_path / "mine") as server:
        for job in ("mine", "../other", str(tmp_path / "other")):
            found = samples(server, job=job, file=file)
            assert (found["job"], found["file"]) == ("mine", "eval-after-000012.parquet")
        assert "step-999999.parquet" not in {f["id"] for f in found["files"]}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:9", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
        ("evil.example:80", 403),
        ("", 403),
    ],
)
def test_only_the_names_of_loopback_are_answered(tmp_path: Path, host: str, status: int) -> None:
    write_run(tmp_path / "mine", seed=0, final=0.9)
    with serving(tmp_path / "mine") as server:
        assert server.server_address[0] == "127.0.0.1"
        assert get(server, Host=host)[0] == status


def test_a_folder_that_cannot_be_read_keeps_its_last_page(tmp_path: Path) -> None:
    write_run(tmp_path / "mine", seed=0, final=0.9)
    with serving(tmp_path / "mine") as server:
        _, headers, body = get(server)
        assert headers["X-Problem"] == ""
        (tmp_path / "mine").rename(tmp_path / "elsewhere")
        status, told, last = newer(server, headers["ETag"])
        assert (
            status == 200
            and last == body
            and told["X-Problem"] == f"there is no folder {tmp_path}/mine"
        )
        (tmp_path / "elsewhere").rename(tmp_path / "mine")
        assert newer(server, told["ETag"])[1]["X-Problem"] == ""


def test_a_sweep_says_who_runs_and_when_all_have_ended(sweep: Path) -> None:
    watcher = Watcher([sweep], ReportOptions(figures=False), every=1.0)
    page = watcher.page().body.decode()
    assert "kl=reverse_k1_reward seed=2" in page and '<progress max="12" value="5"' in page
    assert watcher.ended() == "", "one job is held"


def test_the_terminal_says_where_the_page_is_and_that_the_run_has_ended(tmp_path: Path) -> None:
    with GrowingRun(tmp_path / "mine") as growing:
        growing.steps(2)
        started = subprocess.Popen(
            command("watch", str(tmp_path / "mine"), "every=0.2"),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert started.stdout is not None and started.stderr is not None
        line = started.stdout.readline()
        assert re.fullmatch(r"watching mine at http://127\.0\.0\.1:\d+/ \(\^C ends it\)\n", line)
        growing.end()
        line = started.stdout.readline()
        assert line == "the run has ended: completed, 2 steps; its page stays here until ^C\n"
    os.kill(started.pid, signal.SIGINT)
    out, errors = started.communicate(timeout=20)
    assert (started.returncode, out, errors) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["watch"], "name a run folder, a sweep folder, or several of them"),
        (["watch", "/nowhere"], "there is no folder /nowhere"),
        (["watch", "EMPTY"], "there is no run in EMPTY"),
        (["watch", "port=-1"], "port must be in [0, 65535], got -1"),
        (["watch", "port=65536"], "port must be in [0, 65535], got 65536"),
        (["watch", "every=0"], "every must be in [0.2, 3600] seconds, got 0"),
        (["watch", "every=nan"], "every must be in [0.2, 3600] seconds, got nan"),
        (["watch", "every=soon"], "every must be a number, got soon"),
        (["watch", "out=x"], "out is not an option; there are baseline, panel, metric, margin"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    empty = str(tmp_path)
    assert run([word.replace("EMPTY", empty) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"rlkit: {message}".replace("EMPTY", empty))
    assert error.count("\n") == 1


def test_a_port_that_is_taken_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "mine", seed=0, final=0.9)
    with serving(tmp_path / "mine") as server:
        taken = f"port={server.server_port}"
        assert run(["watch", str(tmp_path / "mine"), taken]) == 1
    error = capsys.readouterr().err
    assert error == f"rlkit: port {server.server_port} cannot be had: Address already in use\n"
