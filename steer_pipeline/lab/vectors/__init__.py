"""Averaged vectors, and the comparison of all vectors of a persona with their controls."""
