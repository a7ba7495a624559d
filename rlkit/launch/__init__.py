"""This package starts runs: it checks before anything expensive, then starts one job or a sweep."""
