"""From a pair's ELBO to one ATen graph that is proved equal to Pyro's loss and gradients, then compiled.

May import: story. Start reading at `graph.py`, which records, simplifies and proves.
"""
