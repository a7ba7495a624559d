"""This room scores completions with reward models: `fn: reward_model` in `reward.functions`.

options         what a reward model may be told
inputs          completions to token ids, by the model's own tokenizer and template
batches         rows to scores: by length, in batches of a token budget, at the last real token
classifier      a Hugging Face sequence classifier
adapter         a second LoRA with a head on the policy's frozen base
scorer          the reward function that a run sees
worker          the same in a process of its own
pairs, train    preferences to an adapter: Bradley-Terry
"""
