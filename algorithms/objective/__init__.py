"""The axes that algorithms share: each module turns the options of one axis into pure functions.

`base` (configuration of every algorithm, `Objective`), `advantage`, `aggregation`, `correction`,
`critic`, `kl` and `kl_terms`, `pairs`, `ratio` and `surrogate`; `policy_gradient` composes them.
"""
