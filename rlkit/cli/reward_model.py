"""`rlkit reward-model` trains a reward model on preferences: an adapter with a head."""

from __future__ import annotations

from collections.abc import Sequence

SUMMARY = "train a reward model on pairs: a LoRA and a head on the policy's base"
_USAGE = """\
rlkit reward-model pairs=FILE out=FOLDER [OPTIONS] [OVERRIDES]

  pairs=FILE             rows with prompt, chosen, rejected (.jsonl, .json, .parquet)
  out=FOLDER             a new folder; reward.functions.NAME.options.source of a run names it
  epochs=1               passes over the pairs
  pairs_per_update=32    pairs of one optimiser update
  tokens_per_batch=4096  most tokens of one forward and backward pass
  max_length=2048        a longer row loses its beginning
  held_out=0.1           share of the prompts that is kept for the accuracy

The loss is Bradley and Terry's. OVERRIDES are those of a run: model.source, model.lora.rank and
memory.quant must be what the run will have; optim.learning_rate, optim.max_grad_norm, seed."""
_WHOLE = ("epochs", "pairs_per_update", "tokens_per_batch", "max_length")


def run(arguments: Sequence[str]) -> int:
    """Train, print the held-out accuracy and write the folder."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(_USAGE)
        return 0
    from rlkit.cli import UsageError
    from rlkit.cli.reward_model_run import lines
    from rlkit.config import ConfigError

    given, overrides = {}, []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name in ("pairs", "out", "held_out", *_WHOLE):
            given[name] = value
        else:
            overrides.append(argument)
    try:
        for required in ("pairs", "out"):
            if not given.get(required):
                raise ValueError(f"{required} must be given: rlkit reward-model pairs=FILE out=DIR")
        counts = {name: _whole(name, given[name]) for name in _WHOLE if name in given}
        held_out = _share(given.get("held_out", "0.1"))
        for line in lines(overrides, given["pairs"], given["out"], counts, held_out):
            print(line, flush=True)
    except (ConfigError, ValueError) as error:
        raise UsageError(str(error)) from error
    return 0


def _whole(name: str, text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"{name} must be a number >= 1, got {text}")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1.0:
        raise ValueError(f"held_out must be in (0, 1), got {text}")
    return value
