"""What tuning changed in a model: in its weights, in its states, and which known directions are in it."""
