"""Names and defaults of a comparison's settings, which the command line shows without importing anything slow."""

FAMILIES = ("PQ", "OPQ", "RQ", "LSQ", "PRQ", "SQ", "signs", "RaBitQ", "TurboQuant")
PARTS = ("exact", "index", "hnsw", "scaling")
LEAST_BYTES, MOST_BYTES = 2, 1024
SIZES, MINUTES, LIMIT_MINUTES = (8, 16, 32), 10.0, 60.0
