"""What a training does to its networks as a whole: compiling, synchronised batch norm, averaging of the weights."""
