"""Tasks: frozen dataclasses that make data and know the truth about it (the protocol is in data.py)."""
