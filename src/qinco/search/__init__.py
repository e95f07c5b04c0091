"""Finding neighbours among codes."""
