"""The memory plan says what a run will take on its device, part by part, before loading anything.

Sizes of weights, adapters and caches are arithmetic (`sizes`). Activations are measured on two
layers of the model without storage (`simulate`). `choose` fits them into what the device has and
refuses what cannot fit. `rehearse` tries the worst step on the device itself.
"""
