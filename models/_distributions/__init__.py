"""Distributions shared by stories and missing from Pyro."""
