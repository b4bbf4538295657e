"""Write, verify, find and restore everything that a run continues from."""
