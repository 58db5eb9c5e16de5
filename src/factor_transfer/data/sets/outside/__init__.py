"""Data sets in the formats of others: one's own code, Hugging Face's library, and WebDataset."""
