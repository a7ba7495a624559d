"""How runs start: checks before anything expensive, then one job or a sweep of them."""
