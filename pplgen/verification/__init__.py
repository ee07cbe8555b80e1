"""The documentation's numerical claims, and their reproduction.

May import: fitting, calibration and the collection. Start reading at `run_claims.py`; one file per subject has claims.
"""
