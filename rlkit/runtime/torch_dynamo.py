"""Importing this module loads torch's compiler, which torch's optimisers import at a first step.

The process that jobs fork from imports it once for all of them; without it nothing but time is
lost.
"""

from __future__ import annotations

import contextlib
import importlib

with contextlib.suppress(ImportError):
    importlib.import_module("torch._dynamo")
