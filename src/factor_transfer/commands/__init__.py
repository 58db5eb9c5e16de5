"""What the commands do, one a file; ``cli`` turns words of the command line into calls of these."""
