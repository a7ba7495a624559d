"""A policy is a base model with the weights that train, its reference, and the critic.

It has these modules:
    policy         forward passes of policy and reference over packed micro-batches
    lora           adapters as explicit tensors
    lora_linear    the arithmetic of adapters
    lora_groups    layers with one input
    lora_merge     merging of adapters
    lora_files     adapters in PEFT's format
    full_weights   all weights train: float32 masters and the copies that compute
"""
