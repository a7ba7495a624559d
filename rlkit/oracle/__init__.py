"""Gradient truth by enumeration: what each switch's expected gradient is, to machine precision."""
