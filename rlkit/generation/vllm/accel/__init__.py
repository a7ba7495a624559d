"""These faster paths through vLLM are optional; `generator.accelerate=off` uses none.

find, burst, burst_*       decoding steps past vLLM's scheduler
dense, dense_*, lora_*     plain matrix products for the adapter, and their Triton kernels

Each path looks its private names up in `compat` when an engine starts, and is tried there. Where it
cannot be had, vLLM's own path does the work.
"""
