"""Healthy pairs, and operators that make broken ones of them, for ``benchmarks/check_power.py``."""
