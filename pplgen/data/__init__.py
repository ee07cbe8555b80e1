"""What comes in: tables, series and streams of rows, checked, with the names of their columns.

May import: errors. Start reading at `table.py`, which reads any table; `series.py` and `streams.py` are its siblings.
"""
