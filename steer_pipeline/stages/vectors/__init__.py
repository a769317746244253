"""Stage vectors: scored dialogues, trained vectors, and their comparison with averaged ones; one partition a persona."""
