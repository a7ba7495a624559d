"""`rlkit export` writes what a run trained in the formats of others, and proves each of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

SUMMARY = "write what a run trained for transformers, vLLM, llama.cpp or Ollama, and prove it"


def run(arguments: Sequence[str]) -> int:
    """Write each format, load it again and say how far it is from the run's policy."""
    from rlkit.cli import UsageError
    from rlkit.exports.formats import WithVLLM, parse_formats
    from rlkit.models.config import DType

    options = _parser().parse_args(arguments)
    if options.prompts < 1:
        raise UsageError(f"--prompts must be >= 1, got {options.prompts}")
    if options.max_kl is not None and not options.max_kl >= 0.0:
        raise UsageError(f"--max-kl must be >= 0, got {options.max_kl}")
    try:
        formats = parse_formats(options.to)
        out = options.out or options.run / "exports"
        if options.out is None and len(formats) == 1:
            out /= formats[0].folder
        # After the arguments: `--help` must not wait for torch and transformers.
        from rlkit.exports.export import export
        from rlkit.exports.request import ExportRequest

        request = ExportRequest(
            run=options.run,
            formats=formats,
            out=out,
            dtype=DType(options.dtype),
            num_prompts=options.prompts,
            max_kl=options.max_kl,
            with_vllm=WithVLLM(options.vllm),
            calibrator=options.calibrator,
        )
        export(request, say=print)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return 0


def _parser() -> argparse.ArgumentParser:
    from rlkit.exports.formats import FORMATS, WithVLLM
    from rlkit.models.config import DType

    dtypes = [dtype.value for dtype in DType if dtype is not DType.auto]
    names = ", ".join(format.name for format in FORMATS)
    parser = argparse.ArgumentParser(prog="rlkit export", description=SUMMARY)
    parser.add_argument("--run", type=Path, required=True, help="a run's folder")
    parser.add_argument("--to", default="merged16", metavar="FORMAT[,FORMAT]", help=names)
    parser.add_argument(
        "--out",
        type=Path,
        help="a new folder; of several formats each has its own inside (default: RUN/exports/...)",
    )
    parser.add_argument(
        "--dtype", choices=dtypes, default=DType.bf16.value, help="of weights that stay in 16 bits"
    )
    parser.add_argument(
        "--prompts", type=int, default=32, help="held-out prompts that the proof answers"
    )
    parser.add_argument(
        "--max-kl", type=float, help="bound of KL(policy || export) in nats a token"
    )
    parser.add_argument(
        "--vllm",
        choices=[choice.value for choice in WithVLLM],
        default=WithVLLM.auto.value,
        help="whether vLLM loads whole models as well (default: on a GPU)",
    )
    parser.add_argument(
        "--calibrator",
        type=Path,
        default=Path(sys.executable),
        help="the Python that has llmcompressor, for gptq and awq (default: this one)",
    )
    return parser
