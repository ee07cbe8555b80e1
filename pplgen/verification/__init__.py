"""The documentation's numerical claims, and their reproduction.

May import: fitting, calibration and the collection. Start reading at `running.py`; one file per subject has claims.
"""
