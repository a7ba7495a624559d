"""The figures of docs/objective.md: their numbers are true, their files current, the page works."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from chromium import BINARY, Tab, browser
from report_page import Page
from torch import Tensor

from rlkit.oracle import explore, targets
from rlkit.oracle.expectation import World, world
from rlkit.oracle.table import figure_files
from rlkit.oracle.tree import logps_of, probabilities

FOLDER = Path(__file__).parents[2] / "docs" / "objective"
KEPT: dict[str, Any] = json.loads((FOLDER / "explore.json").read_text())


@pytest.fixture(scope="module")
def now() -> dict[str, Any]:
    return explore.data()


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(child, f"{name}/{key}")
    else:
        yield name, value


def test_the_numbers_are_current(now: dict[str, Any]) -> None:
    """On failure: python -m rlkit.oracle.table"""
    kept, found = dict(flat(KEPT)), dict(flat(now))
    assert list(kept) == list(found)
    for name, value in found.items():
        if isinstance(value, float):
            assert kept[name] == pytest.approx(value, rel=2e-5, abs=1e-9), name
        else:
            assert kept[name] == value, name


def test_page_and_pictures_are_made_of_the_numbers_that_are_kept() -> None:
    """On failure: python -m rlkit.oracle.table"""
    for name, text in figure_files(KEPT).items():
        assert (FOLDER / name).read_text() == text, name


def by_hand(w: World, coefficient: Tensor) -> Tensor:
    """E[sum over tokens of coefficient * grad log pi], written out; coefficient is (N, T)."""
    theta = w.theta.detach().requires_grad_()
    chances = probabilities(w.tree, w.behaviour)[:, None]
    logps = logps_of(w.tree, w.model.table(theta))
    (gradient,) = torch.autograd.grad((chances * coefficient * logps).sum(), theta)
    return gradient


@pytest.mark.parametrize("parametrisation", ["tab", "tied"])
@pytest.mark.parametrize(
    ("name", "coefficient"),
    [
        ("reverse k1 pathwise", lambda q, p: torch.ones_like(q)),
        ("reverse k2 pathwise", lambda q, p: q - p),
        ("reverse k3 pathwise", lambda q, p: 1 - (p - q).exp()),
        ("forward k1 score_function", lambda q, p: -(p - q).exp()),
        ("reverse unsloth_full_reverse pathwise", lambda q, p: q.exp() * (q - p)),
        ("forward unsloth_forward pathwise", lambda q, p: -p.exp()),
        ("reverse k1 reward", lambda q, p: (q - p).sum(dim=1, keepdim=True).expand_as(q)),
    ],
)
def test_gradients_are_those_of_the_formulas(
    parametrisation: str, name: str, coefficient: Any
) -> None:
    w = world(parametrisation=parametrisation, on_policy=True)
    q, p = logps_of(w.tree, w.table), logps_of(w.tree, w.ref_table)
    got = by_hand(w, coefficient(q, p) * w.tree.mask)
    kept = KEPT["kl"][f"{parametrisation} on"][name]["errors"]
    claims = (targets.reverse_sequence, targets.reverse_token, targets.forward_token)
    for error, claim in zip(kept, claims, strict=True):
        truth = targets.gradient(w, claim(w))
        assert error == pytest.approx(targets.relative_error(got, truth), rel=1e-5, abs=1e-9)
    # The plane of the second figure: first the reward, then the KL of completions.
    reward = targets.gradient(w, targets.expected_reward(w))
    kl = targets.gradient(w, targets.reverse_sequence(w))
    x, y, rest = KEPT["beta"][parametrisation]["terms"][name]
    wanted = KEPT["beta"][parametrisation]["wanted"]
    length = float(reward.norm())
    assert x == pytest.approx(float(got @ reward) / length**2, rel=1e-5, abs=1e-9)
    assert x * wanted[0] + y * wanted[1] == pytest.approx(
        float(got @ kl) / length**2, rel=1e-4, abs=1e-6
    )
    assert (x * x + y * y + rest * rest) ** 0.5 == pytest.approx(
        float(got.norm()) / length, rel=1e-5, abs=1e-9
    )


def test_the_ends_of_the_figures_are_known() -> None:
    for parametrisation in ("tab", "tied"):
        found = KEPT["beta"][parametrisation]
        assert found["policy"] == {"detach": [-1.0, 0.0, 0.0], "no_detach": [0.0, 0.0, 0.0]}
        assert found["terms"]["reverse k1 reward"] == found["wanted"] and found["wanted"][2] == 0
        on = KEPT["kl"][f"{parametrisation} on"]
        assert on["reverse k3 pathwise"]["errors"][2] == 0.0
        assert on["forward exact pathwise"]["errors"] == on["reverse k3 pathwise"]["errors"]
        for name, rows in KEPT["ratio"][parametrisation].items():
            fresh = {"no_detach": 1.0}.get(name, 0.0)
            assert name == "probability" or rows[0][0] == fresh


def test_the_page_is_one_file_that_needs_no_network() -> None:
    text = (FOLDER / "explore.html").read_text()
    page = Page(text)
    assert page.scripts == 2 and page.references == ["data:,"]
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttpRequest|import\(", text)
    inside = text.split('id="data">')[1].split("</script>")[0]
    assert json.loads(inside) == KEPT


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def choose(tab: Tab, form: str, name: str, value: str) -> None:
    tab.run(
        f"(function () {{ var f = document.querySelector('#{form} [name={name}]'); "
        f"f.value = '{value}'; f.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"
    )


@pytest.mark.skipif(BINARY is None, reason="this machine has no Chromium")
def test_the_page_says_what_the_numbers_say(tab: Tab) -> None:
    tab.resize(900, 900)
    tab.open((FOLDER / "explore.html").as_uri())
    said = "document.getElementById('t{}').textContent"
    assert "exactly the gradient of the forward KL per token" in tab.run(said.format(1))
    choose(tab, "f1", "estimator", "k1")
    assert "zero: this term is noise" in tab.run(said.format(1))
    choose(tab, "f1", "gradient", "reward")
    assert "exactly the gradient of the reverse KL of completions" in tab.run(said.format(1))
    choose(tab, "f2", "beta", "100")
    assert tab.run("document.getElementById('beta-is').textContent") == "4.00"
    assert "It is 0° from the wanted step" in tab.run(said.format(2))
    choose(tab, "f1", "direction", "forward")
    choose(tab, "f1", "estimator", "exact")
    assert "rlkit refuses this choice" in tab.run(said.format(1))
    choose(tab, "f1", "gradient", "pathwise")
    tab.run("document.querySelector('[name=detach]').click()")
    assert "no gradient" in tab.run(said.format(2))
    choose(tab, "f2", "beta", "0")
    assert "exactly zero" in tab.run(said.format(2))
    choose(tab, "f3", "ratio", "no_clip")
    choose(tab, "f3", "drift", "0")
    assert tab.run(said.format(3)).startswith("Error 0, cosine 1.000")
    tab.resize(360, 640)
    assert tab.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert tab.errors == []
