"""Configurations: YAML as plain values, the classes of an experiment, and where and with what it is computed."""
