"""Stage vectors: scored dialogues, trained vectors, their comparison with averaged ones, for each persona."""
