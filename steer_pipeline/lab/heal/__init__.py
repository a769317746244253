"""Steer, filter, heal: a student learns what a steered model says, without the damage that steering does."""
