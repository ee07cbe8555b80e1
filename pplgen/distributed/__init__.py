"""Distributed training: ranks, their heartbeat, and sharding of rows.

May import: compiler, storage. Start reading at `ranks.py`.
"""
