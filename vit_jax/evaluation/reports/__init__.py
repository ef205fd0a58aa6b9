"""What evaluations and predictions write: tables and pictures."""
