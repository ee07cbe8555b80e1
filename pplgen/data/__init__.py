"""Input data: validated tables, series and streams of rows, with named columns.

May import: errors. Start reading at `table.py`, which reads any table; `series.py` and `streams.py` are its siblings.
"""
