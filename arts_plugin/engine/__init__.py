"""Batched, forked decoding over any runtime that can compute the next token of many sequences at once."""
