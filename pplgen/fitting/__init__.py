"""`fit()`, `Fit` and what is asked of it: thin, each method one call into the room that does the work.

May import: report, timeseries, storage. Start reading at `fit.py`, then `result.py`.
"""
