"""Steer, filter, heal: a steered teacher makes texts, a filter keeps the coherent ones, an adapter learns them."""
