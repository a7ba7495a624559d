"""`make test-versions`: the suites that touch private names, against other versions of libraries.

Each row of rows.toml gets a venv that shares the packages of .venv, except for those it names. The
results of a row replace those of before in results.json, of which the page is made.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from versions import vllm_names

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results.json")
PAGE = ROOT / "docs" / "compatibility.md"


@dataclass(frozen=True, slots=True)
class Row:
    """One set of packages or one setting of a CPU, and what runs on it."""

    library: str
    suites: list[str]
    install: list[str] = field(default_factory=list)
    dependencies: bool = False
    setting: str = ""
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the row on the command line."""
        if self.setting:
            return f"{self.library}-{self.setting}"
        return self.install[0].replace("==", "-") if self.install else f"{self.library}-as-in-.venv"


@dataclass(frozen=True, slots=True, order=True)
class Result:
    """One line of the table."""

    library: str
    version: str
    suite: str
    passed: int
    failed: int
    skipped: int
    date: str
    command: str
    failures: list[str]


def main(arguments: Sequence[str]) -> int:
    """Run the chosen rows; the exit code is 1 when a test failed."""
    options = _options(arguments)
    table = tomllib.loads(Path(__file__).with_name("rows.toml").read_text())
    rows = [Row(**row) for row in table["rows"]]
    chosen = [row for row in rows if not options.only or row.name.startswith(tuple(options.only))]
    sources = table["vllm_sources"]
    if options.only and "vllm-source" not in options.only:
        sources = []
    if not chosen and not sources:
        print(f"--only must be one of {', '.join(r.name for r in rows)}, got {options.only}")
        return 2
    failed = 0
    for row in chosen:
        own = not row.setting
        python = _venv(row, options.folder / row.name, options.base) if own else _python(options)
        for suite in row.suites:
            result = _run(python, row, suite, table["suites"][suite])
            failed += result.failed
            _record(result)
    for version in sources if vllm_names.can_look_up() else []:
        _record(_names(version, options.folder))
    return int(failed > 0)


def _python(options: argparse.Namespace) -> Path:
    base: Path = options.base
    return base / "bin" / "python"


def _names(version: str, folder: Path) -> Result:
    names = vllm_names.look_up(version, folder)
    return Result(
        library="vllm",
        version=version,
        suite="features in the source",
        passed=len(names.found),
        failed=0,
        skipped=len(names.missing),
        date=_today(),
        command="make test-versions ONLY=vllm-source",
        failures=names.missing,
    )


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="holds the venvs, kept")
    parser.add_argument("--base", type=Path, default=ROOT / ".venv", help="venv they share")
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of rows' names")
    return parser.parse_args(arguments)


def _venv(row: Row, folder: Path, base: Path) -> Path:
    """The interpreter of the row's venv, which is made if it is not there yet."""
    python = folder / "bin" / "python"
    done = folder / "complete"
    if done.exists():
        return python
    print(f"{row.name}: making {folder}", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    if row.install:
        flags = [] if row.dependencies else ["--no-deps"]
        command = [str(python), "-m", "pip", "install", "-q", *flags, *row.install]
        subprocess.run(command, check=True)
    # After the installation, so that pip sees nothing of the shared packages. They come last on the
    # path, and the .pth files among them are not read: rlkit itself is found by PYTHONPATH.
    (site,) = folder.glob("lib/python*/site-packages")
    (shared,) = base.resolve().glob("lib/python*/site-packages")
    (site / "shared.pth").write_text(f"{shared}\n")
    done.touch()
    return python


def _run(python: Path, row: Row, suite: str, paths: Sequence[str]) -> Result:
    paths = [path for path in paths if (ROOT / path).exists()]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        environ = os.environ | {"PYTHONPATH": str(ROOT)} | row.environ
        print(f"{row.name}: {suite}", flush=True)
        subprocess.run([*command, f"--junitxml={report}", *paths], cwd=ROOT, env=environ)
        outcomes = list(_outcomes(report)) if report.exists() else [("failed", "no report")]
    count = {name: sum(o == name for o, _ in outcomes) for name in ("passed", "failed", "skipped")}
    return Result(
        library=row.library,
        version=row.setting or _version(python, row.library),
        suite=suite,
        **count,
        date=_today(),
        command=f"make test-versions ONLY={row.name}",
        failures=[case for outcome, case in outcomes if outcome == "failed"],
    )


def _version(python: Path, library: str) -> str:
    code = f"from importlib.metadata import version; print(version({library!r}))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def _outcomes(report: Path) -> Iterator[tuple[str, str]]:
    """(outcome, name) of every test in a JUnit report."""
    for case in ElementTree.parse(report).iter("testcase"):
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "passed"
        yield "skipped" if "skipped" in tags else outcome, f"{case.get('name')}"


def _record(result: Result) -> None:
    """Put a result in place of its row's last one, and write the page anew."""
    stored: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    results = [Result(**values) for values in stored]
    key = (result.library, result.version, result.suite)
    results = [r for r in results if (r.library, r.version, r.suite) != key]
    results = sorted([*results, result])
    RESULTS.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    PAGE.write_text(page(results))


def page(results: Sequence[Result]) -> str:
    """docs/compatibility.md."""
    lines = [
        "# Versions that were tested",
        "",
        "Which versions of torch, transformers, vLLM and the other libraries does rlkit work with?",
        "Each row below is a version, and how many tests passed, failed and were skipped with it.",
        "All ran on a CPU; rows named `features in the source` read vLLM's source and ran nothing.",
        "",
        "## How it was measured",
        "",
        "`make test-versions` runs the tests that touch private names of other libraries and",
        "writes this page. It runs them on a CPU, in venvs that share everything but the named",
        "library with `.venv`. `tests/versions/rows.toml` lists the packages and the files.",
        "Each private name is taken through one module, which checks it when it is imported:",
        "`rlkit/runtime/private_names.py` names these modules.",
        "Rows of `cpu` run with the packages of `.venv`: `own` takes the instructions that the",
        "machine has (an AMD EPYC with `avx512_bf16`, without AMX), `avx2` those up to AVX2 only.",
        "The number is that of OMP threads. Nothing in this table ran on a machine with AMX.",
        "",
        "| library | version | suite | passed | failed | skipped | date | command |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {r.library} | {r.version} | {r.suite} | {r.passed} | {r.failed} | {r.skipped} "
            f"| {r.date} | `{r.command}` |"
            for r in results
        ),
        "",
    ]
    if absent := [r for r in results if r.failures and not r.failed]:
        lines += ["Features of the vLLM generator that fall back to a plain path:", ""]
        lines += [f"- vLLM {r.version}: {', '.join(r.failures)}." for r in absent]
        lines.append("")
    if broken := [r for r in results if r.failed]:
        lines += ["Tests that failed:", ""]
        for r in broken:
            lines.append(f"- {r.library} {r.version}, {r.suite}: {', '.join(sorted(r.failures))}.")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
