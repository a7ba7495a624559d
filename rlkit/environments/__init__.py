"""Environments answer the model between its turns; tools are functions that it may call.

base       what an environment is: two pure functions with a JSON state
config     options of a run's environment
load       an environment by name, or from any file
worker     the process in which it runs; process and pool start, time and kill it
splice     the template's text between turns, as ids; sampled ids are never encoded again
rules      what becomes of an episode's turns and of the answers to them
rounds     a generator of episodes over any generator of completions
stream     the same with turns that join an engine while it decodes others
"""

from __future__ import annotations

from rlkit.environments.base import Action, Environment, Example, Message, Turn
from rlkit.environments.config import Admission, EnvironmentConfig, EnvironmentSpec, History

__all__ = [
    "Action",
    "Admission",
    "Environment",
    "EnvironmentConfig",
    "EnvironmentSpec",
    "Example",
    "History",
    "Message",
    "Turn",
]
