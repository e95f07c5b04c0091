"""Encoding and decoding on a device; every engine gives what the reference gives."""
