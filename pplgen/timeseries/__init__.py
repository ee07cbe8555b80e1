"""Filtering, smoothing, simulation and forecasting of series, and their likelihood.

May import: posterior, exact. Start reading at `smoothing.py`.
"""
