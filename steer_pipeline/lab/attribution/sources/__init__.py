"""Readers and generators of rows, one a kind of source; each gives a frame of `rows.SFT_SCHEMA` without splits."""
