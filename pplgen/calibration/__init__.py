"""Simulation-based calibration: simulate from the prior, refit all data sets as one program, rank the truths.

May import: report, checks. Start reading at `calibrate.py`.
"""
