"""The rewrite engine: every variant of every row in one pass, resumable, with keyed randomness."""
