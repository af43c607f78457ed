"""The nouns of a federated run, and what needs nothing else of fedrift: errors, random numbers, trees, records, optimizers."""
