"""Steer, filter, heal: which steered samples a student may learn from, and what it keeps of them."""
