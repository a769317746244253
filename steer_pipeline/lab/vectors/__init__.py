"""Averaged, trained and random vectors on the same held-out dialogues: what each says and what each is worth.

In: rows of a behaviour set and vectors of one persona. Out: averaged vectors, likelihood tables, cosines and
classifier scores, as files. `tables` needs no model and no torch; the rest runs one.
"""
