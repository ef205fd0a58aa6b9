"""Tar files: shards with random access, and archives of images."""
