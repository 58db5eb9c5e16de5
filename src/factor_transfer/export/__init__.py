"""Exporting a student to a file for a device, and verifying that the file computes the same as the student."""
