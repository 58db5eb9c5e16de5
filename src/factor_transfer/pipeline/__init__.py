"""A recipe at work in a folder: its stages, what they leave behind, and when that is up to date."""
