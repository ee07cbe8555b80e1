"""Training of a pair: ELBOs, minibatches, the SVI loop, convergence, non-finite values, NUTS.

May import: distributed. Start reading at `train.py`, which chooses between `batched_restarts.py` and `svi.py`.
"""
