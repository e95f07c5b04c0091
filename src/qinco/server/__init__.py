"""`qinco serve`: collections over HTTP, for clients of Qdrant and for arrays."""
