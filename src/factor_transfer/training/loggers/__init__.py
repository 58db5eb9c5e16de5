"""Loggers that write the figures of ``metrics.jsonl`` in other formats too."""
