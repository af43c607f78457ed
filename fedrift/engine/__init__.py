"""From a configuration to a finished run: what is loaded, the rounds, and what is stored."""
