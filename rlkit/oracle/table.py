"""`python -m rlkit.oracle.table [path]` writes `docs/objective.md` and its figures.

Every number is measured here, by enumeration, on the shipped code; every formula stands beside its
switch. `tests/algorithms/test_objective_doc.py` checks that the file is current.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from enum import StrEnum
from pathlib import Path

from rlkit.algorithms import ALGORITHMS, CorrectionConfig, KLConfig, RatioConfig
from rlkit.algorithms.objective.advantage import AdvantageConfig, Baseline, Scale
from rlkit.algorithms.objective.aggregation import Aggregation
from rlkit.oracle import explore, figures, measure
from rlkit.oracle.expectation import world
from rlkit.oracle.formulas import INTRODUCTION, KL, NOTES, OPENING, RATIO, Formula
from rlkit.oracle.markdown import both, number, table
from rlkit.oracle.measure import CONF, PARAMETRISATIONS
from rlkit.oracle.turn_table import turn_sections


def comment(group: str, name: str) -> str:
    """Return the comment at the head of an option's file, on one line."""
    lines = (CONF / group / f"{name}.yaml").read_text().splitlines()
    return " ".join(line[2:] for line in lines if line.startswith("# "))


def check_complete(group: str, formulas: Mapping[str, Formula]) -> None:
    """Raise when an option has no formula or a formula no option."""
    if set(formulas) != set(measure.options(group)):
        raise ValueError(f"formulas of {group} must be those of its options")


def kl_section(*, on_policy: bool) -> str:
    """Return the bias of every option of the kl group."""
    worlds = {p: world(parametrisation=p, on_policy=on_policy) for p in PARAMETRISATIONS}
    rows = []
    for name, formula in KL.items():
        if name == "none":
            continue
        cells = {p: measure.kl_row(name, w, on_policy=on_policy) for p, w in worlds.items()}
        errors = [both({p: number(cells[p].errors[k]) for p in cells}) for k in range(3)]
        rows.append(
            [
                f"`{name}`",
                formula.loss,
                formula.coefficient,
                both({p: number(cells[p].value_bias) for p in cells}),
                *errors,
                both({p: number(cells[p].deviation) for p in cells}),
                formula.source,
            ]
        )
    header = ["kl=", "term", "coefficient of grad q", "value bias"]
    return table(
        [*header, "reverse, sequences", "reverse, tokens", "forward, tokens", "sd", "source"], rows
    )


def ratio_section() -> str:
    """Return the bias of every option of the ratio group, on- and off-policy."""
    rows = []
    for name, formula in RATIO.items():
        cells = []
        for on_policy in (True, False):
            got = {
                p: measure.ratio_row(
                    name, world(parametrisation=p, on_policy=on_policy), on_policy=on_policy
                )
                for p in PARAMETRISATIONS
            }
            cells += [
                both({p: number(got[p].error) for p in got}),
                both({p: number(got[p].cosine) for p in got}),
                both({p: number(got[p].deviation) for p in got}),
            ]
        rows.append([f"`{name}`", formula.loss, formula.coefficient, *cells, formula.source])
    header = ["ratio=", "loss", "coefficient of grad q"]
    columns = [
        "error",
        "cosine",
        "sd",
        "error off-policy",
        "cosine off-policy",
        "sd off-policy",
        "source",
    ]
    return table(header + columns, rows)


def correction_section() -> str:
    """Return the bias of every option of the correction group when another policy samples."""
    rows = []
    for name in measure.options("correction"):
        got = {p: measure.correction_row(name, p) for p in PARAMETRISATIONS}
        cells = [both({p: number(got[p][k]) for p in got}) for k in range(len(got["tab"]))]
        rows.append([f"`{name}`", comment("correction", name), *cells])
    return table(["correction=", "what it does", "error", "cosine", "sd"], rows)


def group_section() -> str:
    """Return the length and direction of E[g] for baselines, scales and aggregations."""
    rows = []
    for group_size in (2, 3):
        for baseline in Baseline:
            for scale in (Scale.none, Scale.group_std):
                if baseline is not Baseline.batch_mean:
                    rows.append(_group_cells(group_size, baseline, scale, Aggregation.sequence_sum))
    for aggregation in Aggregation:
        if aggregation is not Aggregation.microbatch_token_mean:
            rows.append(_group_cells(2, Baseline.leave_one_out, Scale.none, aggregation))
    return table(["G", "baseline", "scale", "aggregation", "length", "cosine"], rows)


def _group_cells(
    group_size: int, baseline: Baseline, scale: Scale, aggregation: Aggregation
) -> list[str]:
    got = {
        p: measure.group_row(
            world(parametrisation=p, on_policy=True),
            group_size,
            baseline=baseline,
            scale=scale,
            aggregation=aggregation,
        )
        for p in PARAMETRISATIONS
    }
    cells = [both({p: number(got[p][k]) for p in got}) for k in (1, 2)]
    return [str(group_size), baseline, scale, aggregation, *cells]


def config_section(key: str, config: type) -> str:
    """Return every field of a config dataclass: default, values, and the string under it."""
    docs = {k: v for base in reversed(config.__mro__[:-1]) for k, v in field_docs(base).items()}
    rows = []
    for f in fields(config):
        default = f.default if f.default is not MISSING else "see `advantage` below"
        value = default.value if isinstance(default, StrEnum) else default
        rows.append([f"`{key}.{f.name}`", yaml_of(value), docs[f.name].replace("|", "\\|")])
    return table(["key", "default", "meaning"], rows)


def yaml_of(value: object) -> str:
    """Return a default as one writes it on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def field_docs(config: type) -> dict[str, str]:
    """Return the string literal under each field, from the source."""
    (node,) = ast.parse(inspect.getsource(config)).body
    assert isinstance(node, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, text in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(field.target, ast.Name) and isinstance(text.value, ast.Constant)
            docs[field.target.id] = " ".join(str(text.value.value).split())
    return docs


def preset_section() -> str:
    """Return every file of the algorithm group with its paper and its deviations."""
    rows = [[f"`{name}`", comment("algorithm", name)] for name in measure.options("algorithm")]
    return table(["algorithm=", "paper and deviations"], rows)


def document() -> str:
    """Return the whole page."""
    check_complete("kl", KL)
    check_complete("ratio", RATIO)
    parts = [
        OPENING + INTRODUCTION,
        "## KL on-policy\n",
        kl_section(on_policy=True),
        NOTES["kl"],
        "## KL off-policy\n",
        kl_section(on_policy=False),
        NOTES["kl_off_policy"],
        "## Ratios and clips\n",
        ratio_section(),
        NOTES["ratio"],
        "## Sampler correction\n",
        correction_section(),
        NOTES["correction"],
        "## Baselines, scales and aggregation\n",
        group_section(),
        NOTES["groups"],
        "## Several turns\n",
        *turn_sections(),
        "## Presets\n",
        preset_section(),
        "\n## Every key\n",
    ]
    for group, config in (
        ("kl", KLConfig),
        ("ratio", RatioConfig),
        ("correction", CorrectionConfig),
    ):
        parts += [f"### {group}\n", config_section(group, config), ""]
    for entry in ALGORITHMS:
        parts += [f"### algorithm={entry.name}\n", config_section("algorithm", entry.config), ""]
    parts += ["### advantage\n", config_section("algorithm.advantage", AdvantageConfig)]
    return "\n".join(parts) + "\n"


def main() -> None:
    """Write the page to the path given, by default `docs/objective.md`, and its figures beside."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/objective.md")
    path.write_text(document())
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    for name, text in figure_files(explore.data()).items():
        (folder / name).write_text(text)
    print(f"wrote {path} and {folder}")


def figure_files(data: explore.Numbers) -> dict[str, str]:
    """Return the files of the figures by name: numbers, the interactive page, and pictures."""
    return {
        "explore.json": json.dumps(data) + "\n",
        "explore.html": figures.page(data),
        "kl.svg": figures.kl_figure(data),
        "beta.svg": figures.beta_figure(data),
        "ratio.svg": figures.ratio_figure(data),
    }


if __name__ == "__main__":
    main()
