"""The networks, in normalised space: torch only, no files, no prints."""
