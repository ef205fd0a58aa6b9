"""Reads examples, makes batches of them and places these on the devices."""
