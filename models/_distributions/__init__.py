"""Distributions that stories share and Pyro lacks."""
