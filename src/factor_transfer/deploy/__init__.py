"""Using a trained student: loading it, classifying images with it, and packaging it for sharing."""
