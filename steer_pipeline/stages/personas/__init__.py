"""Stage personas: contrast sets, persona vectors and dose curves, one partition a persona."""
