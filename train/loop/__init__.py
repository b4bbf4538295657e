"""Train: the loop, the run it works on, and what it logs."""
