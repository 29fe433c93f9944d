"""tuneserve."""
