"""The command line: one file per group of commands.

May import: everything; the only room that looks stories up by name. Start reading at `main.py`.
"""
