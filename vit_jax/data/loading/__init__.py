"""Reads examples, makes batches of them and places these on the devices."""

import warnings

# Of grain's own files, with protobuf 6; there is nothing that a user could do about it.
warnings.filterwarnings('ignore', 'Protobuf gencode version', UserWarning)
