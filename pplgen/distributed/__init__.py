"""Several processes: ranks, their heartbeat, and rows shared out between them.

May import: compiler, storage. Start reading at `ranks.py`.
"""
