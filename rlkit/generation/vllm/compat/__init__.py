"""This package holds what rlkit knows of vLLM's private side, and what it changes there.

features            the private names that each feature needs, as a table
source              looks the names up in vLLM's source text, without importing it
lines, v0_*         what differs between the supported lines of vLLM, one file a line
objects             the paths from a `vllm.LLM` to its core, runner and adapter manager
cpu, repacked       the changes to vLLM on a CPU, and the weights that vLLM has packed away
pools, warm_up      the changes to the start and the end of an engine

The features look their names up when an engine starts. A feature whose names are missing is off,
and rlkit falls back to the plain path. The summary of the engine says which name was missing.
"""
