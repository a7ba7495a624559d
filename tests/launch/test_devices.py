"""Finding cards through NVML: a driver library written in C says what there is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Card 1 has fallen off the bus (15 = GPU is lost). Card 2 does not say its memory (3 = not
# supported), as where host and card share it.
DRIVER = """
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory_t;
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    if (index == 1) return 15;
    *device = (void *)(size_t)(index + 1);
    return 0;
}
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned size) {
    strcpy(uuid, device == (void *)1 ? "GPU-aaaa" : "GPU-cccc");
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
    if (device != (void *)1) return 3;
    memory->total = 85899345920ULL;
    return 0;
}
"""
ASK = (
    "import json; from rlkit.launch.devices import find_gpus; "
    "print(json.dumps([find_gpus({}), find_gpus({'CUDA_VISIBLE_DEVICES': '2'})]))"
)


def ask(library_path: str) -> list[list[list[object]]]:
    environ = os.environ | {"LD_LIBRARY_PATH": library_path}
    command = [sys.executable, "-c", ASK]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    found: list[list[list[object]]] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the driver is linux's")
def test_cards_that_answer_are_found_and_others_are_left_out(tmp_path: Path) -> None:
    source = tmp_path / "driver.c"
    source.write_text(DRIVER)
    library = tmp_path / "libnvidia-ml.so.1"
    command = ["cc", "-shared", "-fPIC", "-w", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    every, visible = ask(str(tmp_path))
    assert every == [["GPU-aaaa", "0", 85899345920], ["GPU-cccc", "2", 0]]
    assert visible == [["GPU-cccc", "2", 0]]


def test_a_driver_that_cannot_be_loaded_means_no_cards(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("no library")
    assert ask(str(tmp_path)) == [[], []]
