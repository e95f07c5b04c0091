"""Thin layers for other people's interfaces."""
