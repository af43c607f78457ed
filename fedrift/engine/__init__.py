"""The engine, which turns a configuration into a finished run: it loads resources, runs the round loop, and stores the results."""
