"""Collections: a database of compressed vectors with ids, payloads and filters."""
