"""The HTML report of a fit, and its tables on the terminal.

May import: checks, plots. Start reading at `page.py`; `console.py` prints.
"""
