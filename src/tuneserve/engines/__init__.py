"""Engines: the contract they all keep, and one module per engine."""
