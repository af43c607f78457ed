"""Are the detectors right? Healthy runs that they must leave alone, planted failures that they must find."""
