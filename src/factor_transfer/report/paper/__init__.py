"""The results of a comparison as files for a paper: a CSV file, and a table for LaTeX."""
