"""Files on disk: atomic writes, run folders with their headers, checkpoints, and users' code; no pickle.

May import: story. Start reading at `run_folder.py`.
"""
