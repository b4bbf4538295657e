"""Looks into a causal language model: predictions, attention, the residual stream, and a step of sampling."""
