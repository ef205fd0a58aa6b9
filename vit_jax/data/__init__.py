"""Data: sources of examples, decoding, augmentation and loading."""
