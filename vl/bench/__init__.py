"""Measurements: what the project says of its speed, and the commands that print it."""
