"""The llama.cpp backend: one context, many sequences, batched and forked decoding in process."""
