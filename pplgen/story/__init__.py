"""What is fitted: the contracts of a story, and the pair that any model, guide and data make.

May import: errors. Start reading at `base.py`, the contract of every story, and `pair.py`.
"""
