"""Texts with numbers that pages of the documentation must contain, computed from the committed stores and results."""
