"""`rlkit quantize` writes an NF4 model folder that keeps the most sensitive layers in 16 bits."""

from __future__ import annotations

from collections.abc import Sequence

SUMMARY = "write an NF4 model that keeps its most sensitive layers in 16 bits"
_USAGE = """\
rlkit quantize out=FOLDER [budget=200MB] [prompts=16] [OVERRIDES]

Quantises each group of layers of `model.source` alone, measures on prompts of `task` what that does
to the model's output, and keeps the worst in 16 bits as long as they cost at most `budget` more
bytes than in 4 bits. FOLDER is a Hugging Face folder for transformers and vLLM.
OVERRIDES are those of a run, such as model.source=... task=..."""
_OPTIONS = ("out", "budget", "prompts")


def run(arguments: Sequence[str]) -> int:
    """Print the table and write the folder."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(_USAGE)
        return 0
    from rlkit.cli import UsageError
    from rlkit.cli.quantize_run import quantise
    from rlkit.config import ConfigError

    options, overrides = {"budget": "200MB", "prompts": "16"}, []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name in _OPTIONS:
            options[name] = value
        else:
            overrides.append(argument)
    if "out" not in options:
        raise UsageError("out must be given: rlkit quantize out=FOLDER")
    if not options["prompts"].isdigit() or int(options["prompts"]) < 1:
        raise UsageError(f"prompts must be a number >= 1, got {options['prompts']}")
    try:
        quantise(overrides, options["out"], options["budget"], int(options["prompts"]))
    except (ConfigError, ValueError) as error:
        raise UsageError(str(error)) from error
    return 0
