"""`fit()`, `Fit` and its methods: thin, each one call into the package that does the work.

May import: report, timeseries, storage. Start reading at `fit.py`, then `result.py`.
"""
