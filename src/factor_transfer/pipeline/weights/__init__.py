"""Where a network's weights come from: random numbers, files from elsewhere, the zoo."""
