"""Splits by name, slices of them, and what is held out."""
