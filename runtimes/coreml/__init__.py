"""Runs Core ML packages: an interpreter of the saved program, for machines without Core ML."""
