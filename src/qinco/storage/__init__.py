"""Between models and files."""
