"""RASP: programs over sequences, an interpreter, and a compiler into toylab's Transformer with the answer attached."""
