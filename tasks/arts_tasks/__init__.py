"""lm-eval tasks that ship with arts-plugin."""
