"""The initial weights of a network: random, from a file of this or another project, or from the zoo."""
