"""Tables on a device compare what was decoded there as the processor does."""

import numpy as np
import pytest
import torch
from small_indexes import NUM_LISTS, built, vectors

from qinco.search.device_tables import DeviceTables


@pytest.mark.parametrize("metric", ["l2", "inner_product", "cosine"])
@pytest.mark.parametrize("kind", ["plain", "ivf"])
def test_a_device_compares_as_the_processor_does(kind, metric, device):
    tables, generator = built(kind, metric).tables, np.random.default_rng(0)
    codes_NM = generator.integers(0, tables.lookup.codebook_size, (50, tables.lookup.num_codes), np.uint8)
    lists_N, decoded_ND = generator.integers(0, NUM_LISTS, 50).astype(np.int32), vectors(50, 2)
    assert (tables.lookup.centroids_VD is None) == (kind == "plain")
    on_device = DeviceTables(tables.scanner, tables.lookup.centroids_VD, tables.ranking.mean_D, device)
    found = on_device.compare(codes_NM, lists_N, torch.tensor(decoded_ND).to(device))
    for values_N, wanted_N in zip(found, tables.scanner.compare(codes_NM, lists_N, decoded_ND), strict=True):
        assert values_N.dtype == np.float32
        np.testing.assert_allclose(values_N, wanted_N, rtol=1e-4, atol=1e-4 * max(1, np.abs(wanted_N).max()))
