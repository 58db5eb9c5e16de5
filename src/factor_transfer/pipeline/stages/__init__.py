"""The three stages: teacher, paraphraser, student."""
