"""Folders of images: which sub-folders are splits and classes."""
