"""What came out, as tables, pictures and words."""
