"""Data sets that other code makes: one's own, and those of Hugging Face's library."""
