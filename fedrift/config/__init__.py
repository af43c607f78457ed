"""Configurations: the YAML loader, the configuration classes of an experiment, and the runtime options."""
