"""The artifact store and the IO managers that put assets into it."""
