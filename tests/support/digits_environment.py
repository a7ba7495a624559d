"""An environment of three turns that a model of random letters earns rewards from."""

from __future__ import annotations

MODULE = '''
from rlkit.environments import Message, Turn

class Digits:
    """A turn earns 1/4 for each digit or vowel; three turns are an episode."""
    def start(self, example, seed):
        return {"seed": seed % 97, "turns": 0}, Turn()
    def step(self, state, action):
        earned = sum(c in "aeiou0123456789" for c in action.text) / 4
        turns = state["turns"] + 1
        say = (Message("user", f"{turns} of {state['seed']}"),)
        info = {"calls": 1.0}
        return {**state, "turns": turns}, Turn(say, reward=earned, done=turns == 3, info=info)
'''
