"""Helpers of the tests: tiny models and tokenizers, conversations, a chat server on loopback."""
