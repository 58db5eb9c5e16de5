"""The networks that come with the package, one family per module."""
