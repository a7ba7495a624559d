"""Fixtures of the peer tests: each peer imported once, and the ledger of differences.

A peer that is missing is an error, not a skip: these tests run only where they are asked for, in
the venv that `make test-peers` makes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from peers.ledger import Ledger
from peers.openrlhf_peer import OpenRLHF
from peers.trl_peer import TRL
from peers.verl_peer import Verl

LEDGER = pytest.StashKey[Ledger]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--peers-page", type=Path, default=None, help="page whose table of differences to rewrite"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEDGER] = Ledger()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    page: Path | None = session.config.getoption("--peers-page", default=None)
    whole_suite = not session.config.getoption("keyword")
    if page is not None and whole_suite and exitstatus == pytest.ExitCode.OK:
        session.config.stash[LEDGER].write(page)


@pytest.fixture(scope="session")
def ledger(request: pytest.FixtureRequest) -> Ledger:
    return request.config.stash[LEDGER]


@pytest.fixture(scope="session")
def trl() -> TRL:
    return TRL.load()


@pytest.fixture(scope="session")
def verl() -> Verl:
    return Verl.load()


@pytest.fixture(scope="session")
def openrlhf() -> OpenRLHF:
    return OpenRLHF.load()
