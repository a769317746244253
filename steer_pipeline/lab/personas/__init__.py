"""What a persona looks like in the model, and how much of it to add: contexts, contrast sets, dose sweeps.

In: the catalogue's personas, a loaded model, news rows. Out: polars rows and a recommended dose. What a vector is, and
how it is computed, lies in `lab/vectors`.
"""
