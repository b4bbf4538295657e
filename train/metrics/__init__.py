"""Metrics of predictions and of whole runs, and their plots."""
