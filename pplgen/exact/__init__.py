"""Answers computed another way, in plain torch: references for tests and pieces to teach with."""
