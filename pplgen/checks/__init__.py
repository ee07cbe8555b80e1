"""How far a fit can be trusted: one function per check, with value, threshold, source, verdict and remedy.

May import: posterior. Start reading at `table.py`, the list of all checks; `check.py`, what a check is.
"""
