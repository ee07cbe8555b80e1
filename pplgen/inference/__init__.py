"""Training of a pair: ELBOs, minibatches, the SVI loop, convergence, non-finite values, NUTS.

May import: distributed. Start reading at `restarts.py`, the loop over a graph, and `svi.py`, that in plain Pyro.
"""
