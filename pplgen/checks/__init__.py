"""Diagnostics of a fit: one function per check, with value, threshold, source, verdict and remedy.

May import: posterior. Start reading at `registry.py`, the list of all checks; `check.py` defines their result.
"""
