"""Scored dialogues of traits and roles: reading, scoring, splitting and encoding them."""
