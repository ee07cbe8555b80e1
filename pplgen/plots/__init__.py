"""Pictures of mixtures, series, latent variables and posteriors, in matplotlib, one palette.

May import: posterior. Start reading at `fit.py`, the picture of a whole fit.
"""
