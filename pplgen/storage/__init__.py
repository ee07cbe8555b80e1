"""What lies on disk: whole files, run folders with their headers, checkpoints, users' own code; no pickle.

May import: story. Start reading at `run_folder.py`.
"""
