"""Measures: frozen dataclasses with `__call__(snapshot)`, thin named adapters from a snapshot to interp."""
