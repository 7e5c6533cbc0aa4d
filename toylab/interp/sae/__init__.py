"""Sparse dictionaries: training them on any activations, and grading them against features that are known."""
