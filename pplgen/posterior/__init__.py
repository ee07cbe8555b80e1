"""Draws of a trained pair and what is computed from them: densities, importance weights, predictions, the DataTree.

May import: inference. Start reading at `draws.py`.
"""
