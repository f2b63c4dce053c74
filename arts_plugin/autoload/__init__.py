"""How lm-eval learns of this package where it looks for no plugins itself."""
