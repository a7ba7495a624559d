"""This package asks a language model behind an OpenAI-compatible endpoint which answer is better.

options         what a judge of `reward.functions` may be told
prompts         the text of its questions, built in or from a file
reading         one reply to a verdict: the probabilities of its first token, or its last words
store           every reply, kept by the content of its request
endpoint        many requests at once, with retries, deadlines and a limit in flight
asking          requests to replies: from the store, within the budget, else from the endpoint
questions       pairs in both orders, and single completions, to verdicts
scorer          the reward function that a run sees
"""
