"""Sparse autoencoders: read or trained, what they say of training rows, and what that tells of a ranking.

`formats` reads directories of sae-lens and of GemmaScope 2 and writes the former; `training` makes one; `fidelity`
judges it; `features` applies it to the ids that training sees; `predictor` goes from features to ranks. `stage` is all
of it in three steps.
"""
