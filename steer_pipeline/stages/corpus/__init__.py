"""Corpus: a snapshot of the news, what was set aside while reading, and articles cut to whole sentences."""
