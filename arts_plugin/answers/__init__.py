"""Answers: found in a model's text, compared, and graded. Model text is data: it is parsed, never evaluated as code."""
