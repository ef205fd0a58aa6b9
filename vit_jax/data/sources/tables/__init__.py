"""Tables of labels: CSV, TSV, JSONL, Parquet."""
