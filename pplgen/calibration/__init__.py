"""Simulation-based calibration: simulate from prior or posterior, refit as one program, rank the truths.

May import: report, checks. Start reading at `calibrate.py`.
"""
