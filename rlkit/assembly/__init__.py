"""This package turns a checked configuration into a run; it loads everything, the cheapest first.

It has these modules:
    assemble      a run of a language model
    tabular_run   a run of an exact table
    load          memory plan, engine and model
    generators    the configured generator
    from_config   what the loop takes from the configuration
    worst_step    the plan against the device
    device        device and threads
    model_run     the record of a run that is ready to train
"""
