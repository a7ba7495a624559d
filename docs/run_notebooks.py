"""Runs notebooks again and keeps what they print and draw: `make notebooks`.

`jupyter execute` also writes the time of every cell. Then a notebook would change with each run,
although it says what it said before.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

for name in sys.argv[1:]:
    notebook = nbformat.read(name, as_version=4)
    folder = {"metadata": {"path": str(Path(name).parent)}}
    NotebookClient(notebook, record_timing=False, resources=folder).execute()
    nbformat.write(notebook, name)
    print(f"ran {name}")
