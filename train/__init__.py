"""How a model is trained: scripts (verbs) over a few parts (nouns)."""
