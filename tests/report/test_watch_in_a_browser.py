"""The live page in a headless Chromium: what moves, what stays, and what a keyboard reaches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import BINARY, Tab, browser
from growing_run import GrowingRun, serving

pytestmark = pytest.mark.skipif(BINARY is None, reason="this machine has no Chromium")

EVIL = "<script>window.hacked=1</script><img src=x onerror='window.hacked=2'>"
POINTS = """(function () {
  var chart = '[aria-label^="training reward: 1 curve over training steps"]';
  var line = document.querySelector(chart + " path.thin");
  return line.getAttribute("d").split("L").length;
})()"""
COUNT = "document.getElementById('browse-count').textContent"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def test_curves_move_and_the_readers_choices_stay(tab: Tab, tmp_path: Path) -> None:
    with GrowingRun(tmp_path / "mine", hostile=EVIL) as growing:
        growing.evaluate("before", rate=0.2)
        growing.steps(3)
        with serving(tmp_path / "mine") as server:
            tab.resize(1200, 700)
            tab.open(server.address)
            tab.until("document.body.classList.contains('going')")
            assert tab.run(POINTS) == 3
            tab.run("document.getElementById('by-samples').click()")
            tab.run("document.querySelector('#reading details').open = true")
            tab.run("document.querySelector('#reading summary').focus()")
            tab.run("document.getElementById('cost').scrollIntoView({behavior: 'instant'})")
            place = "Math.round(document.getElementById('cost').getBoundingClientRect().top)"
            before = tab.run(place)
            growing.steps(5)
            growing.evaluate("step 8", rate=0.5)
            growing.evaluate("more", rate=0.6)  # a third evaluation: new curves above
            tab.until(f"{POINTS} === 8")
            tab.until("document.querySelectorAll('#curves figure').length > 6")
            assert tab.run("document.getElementById('by-samples').checked")
            assert tab.run("document.querySelector('#reading details').open")
            assert tab.run("document.activeElement.textContent") == "Statistics"
            assert abs(tab.run(place) - before) <= 2
            growing.end()
            tab.until("!document.getElementById('ended').hidden")
            assert "completed, 8 steps" in tab.run("document.getElementById('ended').textContent")
            assert tab.run("window.hacked") is None
            assert tab.errors == []
    tab.until("document.body.classList.contains('lost')")  # the server is gone, and it says so
    assert "has stopped" in tab.run("document.getElementById('live-state').textContent")
    tab.errors.clear()


def test_completions_page_through_and_filters_stay(tab: Tab, tmp_path: Path) -> None:
    with GrowingRun(tmp_path / "mine", hostile=EVIL) as growing:
        growing.steps(2)
        with serving(tmp_path / "mine") as server:
            tab.open(server.address)
            tab.until(f"{COUNT} === '1–10 of 48, step 1'")
            tab.run("document.getElementById('on').click()")
            tab.until(f"{COUNT} === '11–20 of 48, step 1'")
            assert "hacked" in tab.run("document.querySelector('#rows pre').textContent")
            tab.run("document.getElementById('older').click()")
            tab.until(f"{COUNT} === '1–10 of 48, step 0'")
            # A keyboard types the filter; the select keeps its choice when files are added.
            tab.run("document.querySelector('[name=text]').focus()")
            for letter in "w2":
                tab.key(letter, code=ord(letter.upper()), text=letter)
            tab.until(f"{COUNT} === '1–8 of 8 that match, of 48, step 0'")
            growing.steps(3)
            tab.until("document.querySelectorAll('#browse-file option').length === 6")
            assert tab.run(COUNT) == "1–8 of 8 that match, of 48, step 0"
            assert tab.run("document.querySelector('[name=text]').value") == "w2"
            assert tab.run("document.activeElement.name") == "text"
            tab.run("document.getElementById('pause').click()")
            growing.steps(1)
            assert "Paused" in tab.run("document.getElementById('live-state').textContent")
            tab.run("new Promise(done => setTimeout(done, 700))")
            assert tab.run("document.querySelectorAll('#browse-file option').length") == 6
            tab.run("document.getElementById('pause').click()")
            tab.until("document.querySelectorAll('#browse-file option').length === 7")
    assert tab.run("window.hacked") is None
    tab.errors.clear()


def test_a_narrow_screen_and_a_keyboard_reach_everything(tab: Tab, tmp_path: Path) -> None:
    with GrowingRun(tmp_path / "mine") as growing:
        growing.evaluate("before", rate=0.2)
        growing.steps(3)
        with serving(tmp_path / "mine") as server:
            tab.resize(360, 640)
            tab.open(server.address)
            tab.until(f"{COUNT} === '1–10 of 48, step 2'")
            assert tab.run("document.documentElement.scrollWidth <= window.innerWidth")
            reached = set[str]()
            for _ in range(45):
                tab.key("Tab", code=9)
                reached.add(tab.run("document.activeElement.id || document.activeElement.name"))
            assert {
                "pause",
                "by-steps",
                "browse-file",
                "older",
                "on",
                "order",
                "text",
                "cut",
            } <= reached
            grounds = []
            for scheme in ("light", "dark"):
                tab.prefer(scheme)
                grounds.append(tab.run("getComputedStyle(document.body).backgroundColor"))
            assert grounds == ["rgb(255, 255, 255)", "rgb(21, 24, 28)"]
    tab.errors.clear()
