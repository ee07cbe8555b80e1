"""Answers computed another way, in plain torch: references for tests, and pieces to teach with.

May import: story (the parameters in `story/dynamics.py`); never Pyro. Start reading at `conjugate.py` and `kalman.py`.
"""
