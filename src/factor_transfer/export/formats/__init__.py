"""The file formats that a student is exported to, and the programs that run them."""
