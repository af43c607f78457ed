"""Adapters that put other frameworks to the problems, each as its documentation says to use it.

Nothing here is imported by fedrift: a peer is installed by whoever wants its verdict.
"""
