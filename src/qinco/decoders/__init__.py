"""Cheap decoders, fitted to codes and vectors: arrays alone."""
