"""vLLM: in the trainer's process, on its weights, under its adapter; or as a server elsewhere.

config                     options of the vLLM generators; imports no vLLM
engine, memory, life       an engine in this process: start, sizes, end
generator, loop            sampling with it
burst, burst_*             decoding steps past vLLM's scheduler
lora, slot, watch, probe   the adapter into vLLM's buffers, and the proof that it arrived
dense, dense_*, lora_*     the adapter's matrix products
weights, nf4               one copy of the base: views for the trainer, 4-bit blocks
worker                     what runs inside vLLM's worker; knows its private attributes
guard, package, cpu        what importing and starting vLLM does to a process, and versions
server                     sampling with a running `vllm serve`
"""
