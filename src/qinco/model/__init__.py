"""Models: as plain arrays (`weights`), and as networks of torch in normalised space."""
