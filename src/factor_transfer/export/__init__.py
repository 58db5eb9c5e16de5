"""A student as a file that runs on a device, and the proof that the file does what the student does."""
