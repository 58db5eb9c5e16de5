"""The commands, one per module; ``cli`` parses the command line and calls them."""
