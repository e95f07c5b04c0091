"""Measuring an index: recall and time, sweeps, fitted options."""
