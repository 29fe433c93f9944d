"""The operations that the decoder is made of, one per file."""
