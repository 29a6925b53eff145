"""File systems, directories, and trainers that write over files."""
