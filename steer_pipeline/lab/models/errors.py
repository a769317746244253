"""What goes wrong with models, as an exception of its own."""


class ModelLoadError(ValueError):
    """A model cannot be loaded. The message names the path or id, what is wrong and the cure."""
