"""The training loop: rollouts are collected, scored, learnt from, and kept so that a run resumes.

trainer                      the loop over steps
collect, evaluate            rollouts with their rewards, for training and for held-out prompts
collate, microbatch          ragged rollouts become one padded batch; a batch becomes micro-batches
learner, update, backward    what a policy must offer; one optimiser step; the backward pass
out_of_memory                smaller micro-batches when a device's memory runs out
optim, loss_scale            optimisers and learning rates; float16's loss scale
checkpoint, progress         what a killed run needs to go on exactly, and putting it back
rollout_files                saved rollouts
first_difference             where two runs of one configuration part
replay                       the gradients of several algorithms on one saved batch
metrics, divergence          numbers of a step; KL(policy || reference) on held-out samples
clock, stopping, deadline    seconds of each phase; requests to stop; waits that end
memory_config                the options of the group `memory`

Nothing here names an algorithm: the loop knows `rlkit.types.Algorithm` only.
"""
