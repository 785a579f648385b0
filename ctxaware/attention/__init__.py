"""Attention without attention matrices: mass on groups of tokens, by any fused kernel."""
