"""rlkit: reinforcement learning of language models on one GPU, pure functions over rollouts."""

__version__ = "0.1.0"
