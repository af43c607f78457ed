"""Data types of a federated run, and helpers that import no other part of fedrift.

The helpers are errors, random streams, trees of tensors, records, optimizers and the registry of extensions.
"""
