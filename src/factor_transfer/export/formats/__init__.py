"""The file formats of exported students, and the runtimes that run them."""
