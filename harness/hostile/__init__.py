"""What somebody with evil intent sends or stores, made from a seed."""
