"""Reports, rendered from stored rows only."""
