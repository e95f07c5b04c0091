"""Comparing codecs: what each method makes of a user's own vectors, and what it costs."""
