"""Held-out likelihood of arms: averaged, trained and random vectors on the same dialogues, and what each is worth.

In: rows of a behaviour set and vectors of one persona. Out: likelihood tables, cosines and classifier scores, as files.
`tables` needs no model and no torch; the rest runs one.
"""
