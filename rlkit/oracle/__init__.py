"""The oracle enumerates each switch's expected gradient, to machine precision."""
