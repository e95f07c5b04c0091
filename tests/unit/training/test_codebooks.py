import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, random_model, random_vectors, torch_encoder

from qinco.config import EncodeOptions, ModelConfig
from qinco.errors import DataError
from qinco.maths.clustering import residual_kmeans
from qinco.model.qinco import Qinco
from qinco.training.codebooks import CodewordUse, initialize_model, redraw_unused, sample, set_scales
from qinco.training.options import TrainOptions
from qinco.vectors.rows import as_source


def test_a_sample_is_of_distinct_rows():
    source = as_source(np.arange(10_000, dtype=np.float32)[:, None])
    rows = sample(source, 1000, 0)[:, 0]
    assert 1000 <= len(rows) < 1300 and len(set(rows)) == len(rows)
    assert np.array_equal(rows, sample(source, 1000, 0)[:, 0])
    assert not np.array_equal(rows[:256], sample(source, 1000, 1)[:256, 0])
    assert len(sample(source, 10**6, 0)) == 10_000


def scaled(x_ND, range_scaling, device="cpu"):
    model = random_model(ARCHITECTURES["same width"]).to(device)
    set_scales(model, as_source(x_ND), TrainOptions(range_scaling=range_scaling), None)
    return model


def test_normalised_vectors_have_mean_zero_and_one_scale(device):
    x_ND = random_vectors(500, 3)
    model = scaled(x_ND, False, device)
    y_ND = model.normalize(torch.from_numpy(x_ND).to(device)).cpu()
    assert model.scale.shape == ()
    torch.testing.assert_close(y_ND.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    assert float(y_ND.square().mean()) == pytest.approx(1, abs=1e-5)


def test_range_scaling_is_the_authors(device):
    x_ND = random_vectors(500, 3)
    model = scaled(x_ND, True, device)
    assert torch.equal(model.mean.cpu(), torch.full((3,), float(x_ND.min()) + 1))
    assert float(model.scale) == pytest.approx((x_ND.max() - x_ND.min()) / 2)


@pytest.mark.parametrize("range_scaling", [True, False])
@pytest.mark.parametrize("length", [1e8, 3e38])
def test_a_vector_beside_which_all_others_are_zero_is_refused(length, range_scaling):
    x_ND = random_vectors(500, 3)
    x_ND[123, 1] = length
    with pytest.raises(DataError, match="row 123 "):
        scaled(x_ND, range_scaling)
    x_ND[123, 1] = 1e4
    scaled(x_ND, range_scaling)
    x_ND[:300], x_ND[123, 1] = 0, length  # most are zero, so that nobody knows what is usual
    scaled(x_ND, range_scaling)


@pytest.mark.parametrize("range_scaling", [True, False])
@pytest.mark.parametrize("value", [0, 7, 1e30])
def test_constant_vectors_are_not_scaled(range_scaling, value):
    model = scaled(np.full((9, 3), value, np.float32), range_scaling)
    assert float(model.scale) == 1 and torch.isfinite(model.mean).all()


def first_error(config, x_ND, options, coarse_VD=None, device="cpu"):
    """MSE in normalised space at the start, encoded greedily, and with a beam; and the model, on the processor then."""
    model = Qinco.empty(config).to_empty(device=device)
    initialize_model(model, as_source(x_ND), options, coarse_VD)
    assert all(tensor.device.type == torch.device(device).type for tensor in model.state_dict().values())
    model.to("cpu")
    y_ND = model.normalize(torch.from_numpy(x_ND))
    lists_N = None if coarse_VD is None else torch.cdist(y_ND, model.coarse_centroids).argmin(1)
    start_ND = model.initial_reconstruction(len(x_ND), lists_N)
    found = [
        float((torch_encoder(model, rule).encode(y_ND, start_ND)[1] - y_ND).square().sum(1).mean())
        for rule in (EncodeOptions(), EncodeOptions(beam_width=8))
    ]
    return *found, model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_start_is_a_residual_quantizer(name, device):
    config = ARCHITECTURES[name]
    x_ND = random_vectors(400, config.dim)
    coarse_VD = random_vectors(config.num_lists, config.dim, 9) if config.starts_from_coarse else None
    greedy, beam, model = first_error(config, x_ND, TrainOptions(), coarse_VD, device)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    y_ND = model.normalize(torch.from_numpy(x_ND)).numpy()
    if coarse_VD is not None:
        centroids_VD = model.coarse_centroids.numpy()
        torch.testing.assert_close(model.denormalize(model.coarse_centroids), torch.from_numpy(coarse_VD))
        y_ND = y_ND - centroids_VD[np.square(y_ND[:, None] - centroids_VD).sum(2).argmin(1)]
    for book_KD in residual_kmeans(y_ND, config.num_steps, config.codebook_size, shrinks=True):
        y_ND = y_ND - book_KD[np.square(y_ND[:, None] - book_KD).sum(2).argmin(1)]
    assert greedy == pytest.approx(float(np.square(y_ND).sum(1).mean()), rel=1e-3)
    assert beam <= greedy * 1.0001


def test_noise_moves_the_codebooks():
    x_ND = random_vectors(400, 3)
    config = ARCHITECTURES["same width"]
    models = (first_error(config, x_ND, TrainOptions(codebook_noise=noise))[2] for noise in (0.0, 0.1))
    plain_KD, noisy_KD = (model.steps[0].codebook.weight.detach() for model in models)
    assert float((noisy_KD - plain_KD).std()) == pytest.approx(0.1 * float(plain_KD.std()), rel=0.5)


def test_use_counts_codes_and_knows_their_targets(device):
    model = random_model(ARCHITECTURES["same width"]).to(device)
    use = CodewordUse(model)
    targets_ND = torch.randn(6, 3)
    use.add(1, torch.tensor([0, 0, 1, 1, 1, 3]).to(device), targets_ND.to(device))
    assert use.counts_MK.tolist() == [[0] * 4, [2, 3, 0, 1], [0] * 4]
    torch.testing.assert_close(use.sums_MD[1].float().cpu(), targets_ND.sum(0))
    torch.testing.assert_close(use.squares_MD[1].float().cpu(), targets_ND.square().sum(0))
    assert use.flat.sum() != 0  # the three are views of what processes sum


def test_entropy_is_in_bits(device):
    model = random_model(ARCHITECTURES["one step"]).to(device)
    for codes, bits in (([0, 1, 2, 3], 2.0), ([0, 0, 1, 1], 1.0), ([2, 2], 0.0)):
        use = CodewordUse(model)
        use.add(0, torch.tensor(codes).to(device), torch.zeros(len(codes), 3, device=device))
        assert use.entropy() == pytest.approx(bits)


def used(model, codes, targets_ND):
    use = CodewordUse(model)
    for m in range(model.config.num_steps):
        use.add(m, codes.to(model.device), targets_ND.to(model.device))
    return use


@pytest.mark.parametrize("redraw", ["split", "targets"])
def test_only_unused_codewords_are_redrawn(redraw, device):
    """The same ones, whatever the device, as the processor draws."""
    model = random_model(ARCHITECTURES["same width"]).to(device)
    other = random_model(ARCHITECTURES["same width"])
    codes, targets_ND = torch.tensor([0, 0, 2]), torch.randn(3, 3) + 20
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    before = [step.codebook.weight.clone() for step in other.steps]
    assert redraw_unused(model, used(model, codes, targets_ND), redraw, generators[0]) == 6
    redraw_unused(other, used(other, codes, targets_ND), redraw, generators[1])
    for m, step in enumerate(model.to("cpu").steps):
        changed = (step.codebook.weight != before[m]).any(1)
        assert changed.tolist() == [False, True, False, True]
        torch.testing.assert_close(step.codebook.weight, other.steps[m].codebook.weight)
        new_ND = step.codebook.weight[changed]
        if redraw == "split":
            assert torch.cdist(new_ND, before[m][[0, 2]]).min(1).values.max() < 0.2
        else:
            assert (new_ND - 20).abs().max() < 9


def test_where_all_are_used_or_none_was_counted_nothing_changes():
    model = random_model(ARCHITECTURES["projected"])
    before = [step.codebook.weight.clone() for step in model.steps]
    generator = torch.Generator().manual_seed(0)
    assert redraw_unused(model, used(model, torch.arange(4), torch.randn(4, 3)), "split", generator) == 0
    assert redraw_unused(model, CodewordUse(model), "split", generator) == 12
    assert all(torch.equal(step.codebook.weight, b) for step, b in zip(model.steps, before, strict=True))


def test_the_start_needs_no_more_vectors_than_there_are():
    config = ModelConfig(dim=2, num_steps=2, codebook_size=16, hidden_dim=4)
    greedy, _, model = first_error(config, random_vectors(16, 2), TrainOptions())
    assert greedy == pytest.approx(0, abs=1e-3) and torch.isfinite(model.steps[1].codebook.weight).all()
