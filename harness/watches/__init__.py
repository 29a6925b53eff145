"""Watched directories, and what trainers write into them."""
