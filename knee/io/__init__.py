"""Files, tables and processes: atomic writes, bounded reads."""
