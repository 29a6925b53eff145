"""Stores for tests, and content for them."""
