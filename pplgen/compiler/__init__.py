"""Compile a pair's ELBO to one ATen graph, verified against Pyro's loss and gradients.

May import: story. Start reading at `graph.py`, which records, simplifies and verifies.
"""
