"""Where stories start: functions from rows to values."""
