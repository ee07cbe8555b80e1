"""Initialisation of guides and networks from data: k-means++, EM, projections."""
