"""The command line: a file per group of commands.

May import: everything; the only room that looks the collection up by name. Start reading at `main.py`.
"""
