"""Whether inference is right at all: simulate from the prior, refit all data sets at once, rank the truth.

May import: report, checks. Start reading at `calibrate.py`.
"""
