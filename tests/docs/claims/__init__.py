"""Texts with numbers that pages of the docs must have, made from the committed stores and results."""
