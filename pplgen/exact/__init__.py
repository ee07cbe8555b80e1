"""Exact reference algorithms in plain torch, for validation and teaching.

May import: story (the parameters in `story/dynamics.py`); never Pyro. Start reading at `conjugate.py` and `kalman.py`.
"""
