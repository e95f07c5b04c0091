"""A durable collection of compressed vectors with ids and payloads."""
