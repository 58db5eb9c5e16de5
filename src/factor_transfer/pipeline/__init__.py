"""The pipeline that runs a recipe in a folder: its stages, the files they write, and whether these are up to date."""
