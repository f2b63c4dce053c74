"""Answers: how they are found in text, compared, and summed up with intervals."""
