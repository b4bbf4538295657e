"""Numbers that tell how good a model is, and their plots."""
