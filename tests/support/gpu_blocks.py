"""Runs the blocks of the site that need a card: `python tests/support/gpu_blocks.py --model FILE`.

A machine with a card may have no network. So a model of the hub is replaced by the one given, whose
chat template must show tools, and GSM8K by rows of its form. Runs are cut to two steps. Every other
word is as the page prints it. It prints a line a command.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from code_blocks import ROOT, blocks, commands, pages, rlkit_arguments, write_files
from page_assumptions import write_gsm8k

FEWER = {"steps": "2", "seed": "0,1"}
"""Options that are cut, where a page has them; every training run gets `steps`."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder or a .gguf file")
    parser.add_argument("--list", action="store_true", help="print the commands, run nothing")
    options = parser.parse_args(arguments)
    failed = 0
    for page, command in needing_a_card(options.model):
        name = f"{page.relative_to(ROOT)}: {' '.join(command)}"
        if options.list:
            print(name)
            continue
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            write_files(page, Path(folder))
            write_gsm8k(Path(folder) / "path/to/gsm8k")
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        failed += done.returncode != 0
        print(f"rc {done.returncode}, {time.monotonic() - begun:.0f} s, {name}", flush=True)
        if done.returncode:
            print(*(done.stdout + done.stderr).splitlines()[-15:], sep="\n", flush=True)
    return failed


def needing_a_card(model: str) -> Iterator[tuple[Path, list[str]]]:
    """Yield the page and the words of each rlkit command whose block needs a card."""
    for page in pages():
        for block in blocks(page):
            for words in commands(block) if block.needs == "gpu" else ():
                given = rlkit_arguments(words)
                if given is not None:
                    yield page, [sys.executable, "-m", "rlkit", *smaller(given, model)]


def smaller(arguments: list[str], model: str) -> list[str]:
    """Return the arguments with another model and fewer steps and seeds."""
    kept = []
    for word in arguments:
        key, _, _ = word.partition("=")
        if key == "model":
            kept.append(f"model.source={model}")
        elif key in FEWER:
            kept.append(f"{key}={FEWER[key]}")
        else:
            kept.append(word)
    if not any(word.startswith("model.source=") for word in kept):
        kept.append(f"model.source={model}")
    if "task=gsm8k" in kept and not any(word.startswith("task.path=") for word in kept):
        kept.append("task.path=path/to/gsm8k")
    return kept if any(w.startswith("steps=") for w in kept) else [*kept, "steps=2"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
