"""Write the model card of an export: what was trained on what, and how near the export is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlkit.exports.compare import Loaded, Proof
from rlkit.exports.formats import Format, Kind
from rlkit.exports.trained import TrainedPolicy
from rlkit.launch.environment import versions
from rlkit.models.source import SourceKind, kind_of
from rlkit.tracking.base import EvalRecord
from rlkit.tracking.read import read_evals

_SHOWN = (
    *("seed", "steps", "prompts_per_step", "algorithm.group_size", "optim.learning_rate"),
    *("kl.estimator", "kl.beta", "model.lora.rank", "model.lora.alpha", "memory.quant.kind"),
)
_STARTER = ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """This record names the model that a run started from."""

    name: str
    hub_id: str
    """Empty = it is not on the hub, as far as the run knows."""
    licence: str
    """The licence that its model card names; empty = unknown."""


def base_of(trained: TrainedPolicy) -> Base:
    """Return the name and the licence of the run's base model."""
    source = trained.run.options.model.source
    kind = kind_of(source) if trained.run.has_adapter else _kind_or_folder(source)
    if kind is SourceKind.starter:
        return Base(name=_STARTER[0], hub_id=_STARTER[0], licence=_STARTER[1])
    hub_id = source if kind is SourceKind.hub else ""
    return Base(
        name=source if hub_id else Path(source).name,
        hub_id=hub_id,
        licence=_licence(trained.base),
    )


def _kind_or_folder(source: str) -> SourceKind:
    try:
        return kind_of(source)
    except ValueError:  # the base of a run that trained all weights may be gone
        return SourceKind.folder


def _licence(folder: Path) -> str:
    card = folder / "README.md"
    if not card.is_file():
        return ""
    parts = card.read_text(errors="replace").split("---\n", 2)
    try:
        values = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else {}
    except yaml.YAMLError:
        return ""
    return str(values.get("license", "")) if isinstance(values, Mapping) else ""


def card(trained: TrainedPolicy, format: Format, loaded: Loaded, *, use: str) -> str:
    """Return the text of README.md.

    Args:
        trained: The policy.
        format: The format of the export.
        loaded: How near the export is to the policy, by each library.
        use: A few lines that load it.
    """
    base = base_of(trained)
    config = _config(trained.run.folder)
    record = _json(trained.run.folder / "run.json")
    parts = [
        f"---\n{yaml.safe_dump(_front(base, format), sort_keys=False)}---\n",
        f"# {trained.run.folder.name}: {format.name}\n",
        _what(trained, base, config, record),
        _results(trained.run.folder),
        "## The export\n",
        f"This is the format `{format.name}`.\n",
        *(_proven(proof) for proof in loaded.proofs),
        f"{loaded.note}\n" if loaded.note else "",
        f"## Use\n\n```\n{use}\n```\n",
        _settings(config),
        _licence_line(base),
        _versions(record),
    ]
    return "\n".join(part for part in parts if part)


def _front(base: Base, format: Format) -> dict[str, Any]:
    front: dict[str, Any] = {}
    if base.licence:
        front["license"] = base.licence
    if base.hub_id:
        front["base_model"] = base.hub_id
    libraries = {Kind.adapter: "peft", Kind.folder: "transformers"}
    if format.kind in libraries:
        front["library_name"] = libraries[format.kind]
    front["pipeline_tag"] = "text-generation"
    front["tags"] = ["rlkit", "reinforcement-learning"]
    if format.kind in (Kind.gguf, Kind.gguf_lora):
        front["tags"].append("gguf")
    return front


def _what(
    trained: TrainedPolicy, base: Base, config: Mapping[str, Any], record: Mapping[str, Any]
) -> str:
    what = "an adapter" if trained.run.has_adapter else "all weights"
    task = "" if trained.run.task is None else f" on the task `{trained.run.task.name}`"
    algorithm = record.get("algorithm")
    by = f" with {algorithm}" if algorithm else ""
    steps = f" for {config['steps']} steps" if "steps" in config else ""
    return f"rlkit trained {what} of {base.name}{task}{by}{steps}.\n"


def _results(run: Path) -> str:
    try:
        records: list[EvalRecord] = read_evals(run, samples=False)
    except (OSError, ValueError, KeyError, AssertionError):
        return ""
    if not records:
        return ""
    rows = [
        f"| {r.label} | {r.step} | {r.measure.value} | {r.interval.mean:.3f} | "
        f"{r.interval.low:.3f} to {r.interval.high:.3f} |"
        for r in (records[0], *records[-1:][: len(records) - 1])
    ]
    head = (
        "| evaluation | step | measure | mean | 95% interval |\n| --- | --- | --- | --- | --- |\n"
    )
    return "## Held-out results of the run\n\n" + head + "\n".join(rows) + "\n"


def _proven(proof: Proof) -> str:
    told = (
        f"{proof.loader} loaded it again and was compared with the policy of the run on "
        f"{proof.num_tokens} tokens of held-out prompts:\n\n"
    )
    return told + _figures(proof)


def _figures(proof: Proof) -> str:
    rows = [
        ("KL(policy, export), nats a token", f"{proof.kl:.2e}"),
        ("bound of it", f"{proof.max_kl:g}"),
        ("mean difference of log-probs, nats", f"{proof.mean_difference:.2e}"),
        ("largest difference, nats", f"{proof.max_difference:.2e}"),
    ]
    if proof.success is not None and proof.policy_success is not None:
        rows += [
            ("success of greedy answers, policy", f"{proof.policy_success:.3f}"),
            ("success of greedy answers, export", f"{proof.success:.3f}"),
        ]
    lines = [f"| {name} | {value} |" for name, value in rows]
    return "| figure | value |\n| --- | --- |\n" + "\n".join(lines) + "\n"


def _settings(config: Mapping[str, Any]) -> str:
    rows = [f"| `{key}` | {value} |" for key in _SHOWN if (value := _leaf(config, key)) is not None]
    if not rows:
        return ""
    return "## Settings\n\n| option | value |\n| --- | --- |\n" + "\n".join(rows) + "\n"


def _leaf(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _licence_line(base: Base) -> str:
    if base.licence:
        return f"The base model's licence is {base.licence}.\n"
    return f"The licence is that of the base model, {base.name}, whose files do not name it.\n"


def _versions(record: Mapping[str, Any]) -> str:
    trained = record.get("versions")
    lines = []
    if isinstance(trained, Mapping):
        lines.append("Trained with " + ", ".join(f"{k} {v}" for k, v in trained.items()) + ".")
    lines.append("Exported with " + ", ".join(f"{k} {v}" for k, v in versions().items()) + ".")
    return "\n".join(lines) + "\n"


def _config(run: Path) -> Mapping[str, Any]:
    values = yaml.safe_load((run / "config.yaml").read_text())
    return values if isinstance(values, Mapping) else {}


def _json(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, Mapping) else {}
