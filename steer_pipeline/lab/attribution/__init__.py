"""Which training rows help: rows and splits, ids, adapters, rankings, subsets, and games played by what was trained.

Knows nothing about assets. `rows` holds the layout that every source is read into, `manifest` the splits.
"""
