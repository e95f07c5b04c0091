"""Codecs, indexes and collections on the Hugging Face hub, whose library is imported only when it is used."""
