"""What a person reads of a fit: the report's page and the tables on the terminal.

May import: checks, plots. Start reading at `page.py`; `console.py` prints.
"""
