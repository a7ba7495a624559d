"""`model=tabular` makes policies small enough to write down, which the production loop trains.

A table of logits, one row for each prompt and prefix, stands in for the language model. Sampling,
rewards, `prepare`, loss, update, checkpoints and trackers are those of every other run. Only the
evaluation differs: it enumerates all completions, so that expected reward and KL are exact. A run
of 300 steps takes about two seconds, which makes twenty seeds of a whole grid affordable.

    config      options of `model=tabular`, `task=tabular` and `generator=tabular`
    world       completions, reference policy and rewards
    policy      the table as a `Learner`
    generator   sampling from the table
    evaluate    exact expectations
    run         all of it as a training run
"""

from rlkit.tabular.config import (
    SCHEMAS,
    TabularGeneratorConfig,
    TabularModelConfig,
    TabularTaskConfig,
)

__all__ = ["SCHEMAS", "TabularGeneratorConfig", "TabularModelConfig", "TabularTaskConfig"]
