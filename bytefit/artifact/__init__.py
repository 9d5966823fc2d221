"""Codes, config and tokenizer to one file, and back."""
