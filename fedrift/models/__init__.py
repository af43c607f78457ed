"""Language models: found by name, worn by many clients at once, saved for others to read."""
