"""Filter, smooth, simulate and forecast series; their likelihood.

May import: posterior, exact. Start reading at `smoothing.py`.
"""
