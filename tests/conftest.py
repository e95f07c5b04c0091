"""Makes `small_models` importable from every folder of tests."""
