"""Random changes of images: crops and flips, strong changes for the student, and mixing of two images."""
