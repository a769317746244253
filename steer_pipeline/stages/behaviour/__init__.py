"""Stage behaviour: what vanilla, prompted and steered models say, scored; one partition a persona."""
