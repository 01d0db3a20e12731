"""``dcmt review``: export, verdicts, sanity check."""
