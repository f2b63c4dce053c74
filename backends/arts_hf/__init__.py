"""The Hugging Face backend: transformers models on GPU or CPU, batched and forked decoding over one KV pool."""
