"""From vectors to a trained model."""
