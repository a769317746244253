"""Trained steering vectors: one learned direction at one site, everything else frozen."""
