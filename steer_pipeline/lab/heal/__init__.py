"""Steer, filter, heal: what a steered model says is kept where it is coherent and learned, and every arm stands beside
its base.
"""
