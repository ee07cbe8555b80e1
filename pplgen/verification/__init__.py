"""The documentation's claims, measured again.

May import: fitting, calibration and the collection. Start reading at `running.py`; a file per subject holds its claims.
"""
