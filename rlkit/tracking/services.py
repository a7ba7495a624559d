"""The clients of tracking services run in the child process of a `Mirror` and nowhere else.

They were tested with wandb 0.31.0, trackio 0.43.0 and tensorboard 2.21.0.
"""

from __future__ import annotations

import html
import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from rlkit.runtime.distribution import how_to_install


class ServiceSession(Protocol):
    """This is one run at a service."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
    ) -> None:
        """Show some samples of a step.

        Args:
            name: The name of the table.
            columns: The names of its columns.
            rows: The cells, row by row.
            step: The step of the run, >= 0.
        """
        ...

    def finish(self, exit_code: int) -> None: ...


class WandbSession:
    """The run is mirrored to Weights & Biases.

    Neither code, console, git remote nor arguments are recorded: they may leak.
    """

    def __init__(self, start: Mapping[str, Any]) -> None:
        wandb = self._wandb = _import("wandb")
        options = start["options"]
        settings = wandb.Settings(
            console="off", init_timeout=30, disable_git=True, disable_code=True, save_code=False
        )
        self._run = wandb.init(
            project=options["project"],
            entity=options["entity"],
            mode=options["mode"],
            name=start["name"],
            group=start["group"] or None,
            id=start["id"],
            resume="allow",
            dir=start["run_dir"],
            config={**start["config"], "versions": start["versions"]},
            settings=settings,
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
    ) -> None:
        """Send a table of the step; wandb's page has a slider over the steps.

        Args:
            name: The name of the table.
            columns: The names of its columns.
            rows: The cells, row by row.
            step: The step of the run, >= 0.
        """
        table = self._wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        self._run.log({name: table}, step=step)

    def finish(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)


class TrackioSession:
    """This client writes to a local database of Trackio, or to a Space on the Hub."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        self._trackio = _import("trackio")
        options = start["options"]
        self._trackio.init(
            project=options["project"],
            name=f"{start['name']}-{start['id'][:6]}",
            space_id=options["space_id"],
            config={**start["config"], "versions": start["versions"]},
            resume="allow",
            embed=False,
            auto_log_gpu=False,
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._trackio.log(dict(metrics), step=step)

    def table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
    ) -> None:
        """Do nothing: Trackio's tables need pandas, and the run's folder has the samples.

        Args:
            name: The name of the table.
            columns: The names of its columns.
            rows: The cells, row by row.
            step: The step of the run, >= 0.
        """

    def finish(self, exit_code: int) -> None:
        self._trackio.finish()


class TensorboardSession:
    """This client writes event files under `tensorboard/` in the run folder, without TensorFlow."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        writers = _import("tensorboard.summary.writer.event_file_writer")
        self._events = _import("tensorboard.compat.proto.event_pb2")
        self._summaries = _import("tensorboard.compat.proto.summary_pb2")
        self._writer = writers.EventFileWriter(f"{start['run_dir']}/tensorboard")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        values = [
            self._summaries.Summary.Value(tag=name, simple_value=value)
            for name, value in metrics.items()
        ]
        self._add(self._summaries.Summary(value=values), step)

    def table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
    ) -> None:
        """Write a Markdown table, which TensorBoard's text page renders.

        Args:
            name: The name of the table.
            columns: The names of its columns.
            rows: The cells, row by row.
            step: The step of the run, >= 0.
        """
        lines = [columns, ["---"] * len(columns), *rows]
        text = "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
        tensors = _import("tensorboard.compat.proto.tensor_pb2")
        shapes = _import("tensorboard.compat.proto.tensor_shape_pb2")
        metadata = self._summaries.SummaryMetadata(
            plugin_data=self._summaries.SummaryMetadata.PluginData(plugin_name="text")
        )
        tensor = tensors.TensorProto(
            dtype="DT_STRING",
            string_val=[text.encode()],
            tensor_shape=shapes.TensorShapeProto(dim=[shapes.TensorShapeProto.Dim(size=1)]),
        )
        value = self._summaries.Summary.Value(tag=name, metadata=metadata, tensor=tensor)
        self._add(self._summaries.Summary(value=[value]), step)

    def _add(self, summary: Any, step: int) -> None:
        event = self._events.Event(wall_time=time.time(), step=step, summary=summary)
        self._writer.add_event(event)
        self._writer.flush()

    def finish(self, exit_code: int) -> None:
        self._writer.close()


_SESSIONS: Mapping[str, Callable[[Mapping[str, Any]], ServiceSession]] = {
    "wandb": WandbSession,
    "trackio": TrackioSession,
    "tensorboard": TensorboardSession,
}


def open_session(start: Mapping[str, Any]) -> ServiceSession:
    """Open the run that a `start` event describes.

    Raises:
        RuntimeError: the service's package is not installed.
    """
    return _SESSIONS[start["service"]](start)


def _cell(value: object) -> str:
    """Return a value in one cell of a Markdown table."""
    text = html.escape(str(value)).replace("|", "&#124;")
    return text.replace("\n", "<br>")


def _import(module: str) -> Any:
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise RuntimeError(f"{package} is not installed: {how_to_install(package)}") from error
