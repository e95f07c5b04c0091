import pytest

from qinco.config import (
    DEFAULT_ENCODE_OPTIONS,
    PAPER_ENCODE_OPTIONS,
    PRESETS,
    EncodeOptions,
    ModelConfig,
    find_preset,
    suggest,
)
from qinco.errors import ConfigError


def test_embed_dim_is_the_dimension_unless_given():
    assert ModelConfig(dim=7).embed_dim == 7
    assert not ModelConfig(dim=7).projects
    assert ModelConfig(dim=7, embed_dim=8).projects


def test_a_config_survives_its_dict():
    config = ModelConfig(dim=7, num_steps=3, embed_dim=9, concat_rank=2, starts_from_coarse=True, num_lists=4)
    assert ModelConfig(**config.to_dict()) == config


@pytest.mark.parametrize(
    ("size", "bits", "size_in_bytes"), [(2, 1, 1.0), (256, 8, 8.0), (1024, 10, 10.0), (65536, 16, 16.0)]
)
def test_sizes_of_codes(size, bits, size_in_bytes):
    config = ModelConfig(dim=7, codebook_size=size)
    assert (config.bits_per_step, config.bytes_per_vector) == (bits, size_in_bytes)


def test_only_the_first_step_without_a_coarse_start_is_unconditioned():
    assert [ModelConfig(dim=7).is_conditioned(m) for m in range(3)] == [False, True, True]
    assert ModelConfig(dim=7, starts_from_coarse=True, num_lists=2).is_conditioned(0)


def test_steps_that_follow_a_network_are_ranked():
    coarse = {"starts_from_coarse": True, "num_lists": 2}
    for fields, wanted in (({}, [False, False, True]), (coarse, [False, True, True])):
        assert [ModelConfig(dim=7, has_ranker=True, **fields).is_ranked(m) for m in range(3)] == wanted
    assert not ModelConfig(dim=7).is_ranked(2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 0}, "dim must be between 1 and 16777216, not 0"),
        ({"hidden_dim": 2**62}, r"hidden_dim \(dh\) must be between"),
        ({"has_preselector": "yes"}, "has_preselector must be true or false, not 'yes'"),
        ({"dim": 2.0}, "dim must be an integer, not 2.0"),
        ({"dim": True}, "dim must be an integer"),
        ({"num_steps": 0}, r"num_steps \(M\) must be between 1 and 1024"),
        ({"num_blocks": -1}, r"num_blocks \(L\) must be between 0 and 1024"),
        ({"codebook_size": 1}, r"codebook_size \(K\) must be between 2 and 65536, not 1"),
        ({"codebook_size": 131072}, "between 2 and 65536"),
        ({"codebook_size": 100}, "must be a power of two, not 100"),
        ({"concat_rank": 0}, "concat_rank must be between 1 and"),
        ({"starts_from_coarse": True}, "contradicts num_lists=0"),
        ({"num_lists": 3}, "contradicts num_lists=3"),
        ({"codeword_skip": False, "embed_dim": 3}, "needs embed_dim = dim, not 3 and 7"),
        ({"has_ranker": True, "has_preselector": False}, "has_ranker=true needs a pre-selector"),
        ({"has_ranker": True, "num_blocks": 0}, "has_ranker=true needs a pre-selector"),
    ],
)
def test_wrong_architectures_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**{"dim": 7} | fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_candidates": 4, "num_pairs": 8}, r"A=4\) and num_pairs \(C=8\) exclude each other"),
        ({"num_candidates": 0}, r"num_candidates \(A\) must be at least 1"),
        ({"num_pairs": -1}, r"num_pairs \(C\) must be at least 1"),
        ({"beam_width": 0}, r"beam_width \(B\) must be at least 1"),
        ({"beam_width": "4"}, r"beam_width \(B\) must be an integer, not '4'"),
        ({"precision": "fp16"}, "precision must be one of auto, float32, bf16, not 'fp16'"),
        ({"engine": "magic"}, "engine must be one of"),
    ],
)
def test_wrong_search_rules_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        EncodeOptions(**fields)


def test_one_rule_replaces_the_other():
    pairs = EncodeOptions(num_pairs=64, beam_width=32)
    assert pairs.override() == pairs
    assert pairs.override(num_candidates=16) == EncodeOptions(num_candidates=16, beam_width=32)
    assert pairs.override(num_candidates=16).override(num_pairs=8, beam_width=2) == EncodeOptions(None, 8, 2)
    assert not pairs.override(num_candidates=0).preselects
    assert pairs.override(precision="bf16").precision == "bf16"
    with pytest.raises(ConfigError, match="exclude each other"):
        pairs.override(num_candidates=2, num_pairs=3)


@pytest.mark.parametrize(("fields", "letter"), [({"num_candidates": 4}, "A"), ({"num_pairs": 4}, "C")])
def test_a_model_without_preselector_cannot_propose(fields, letter):
    model = ModelConfig(dim=3, has_preselector=False)
    with pytest.raises(ConfigError, match=rf"\({letter}\) needs a pre-selector"):
        EncodeOptions(**fields).check_model(model)
    EncodeOptions(beam_width=4).check_model(model)
    EncodeOptions(**fields).check_model(ModelConfig(dim=3))


def test_what_is_stored_is_the_rule_not_the_machine():
    stored = {"num_candidates": None, "num_pairs": 4, "beam_width": 2}
    assert EncodeOptions(num_pairs=4, beam_width=2, precision="bf16").to_dict() == stored


def test_presets_are_the_published_sizes_and_two_smaller_ones():
    names = ("num_blocks", "embed_dim", "hidden_dim")
    sizes = {name: tuple(preset.get(field) for field in names) for name, preset in PRESETS.items()}
    assert sizes == {
        "qinco1": (16, None, 256), "qinco2-XXS": (1, 64, 128), "qinco2-XS": (2, 64, 128), "qinco2-S": (2, 128, 256),
        "qinco2-M": (4, 384, 384), "qinco2-L": (16, 384, 384),
    }  # fmt: skip
    assert EncodeOptions(num_candidates=16, beam_width=32) == PAPER_ENCODE_OPTIONS
    assert EncodeOptions(num_pairs=80, beam_width=40) == DEFAULT_ENCODE_OPTIONS


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean qinco2-S"):
        find_preset("qinco2-s")
    with pytest.raises(ConfigError, match="There are auto, qinco1, qinco2-XXS, qinco2-XS, qinco2-S"):
        find_preset("zzz")


def test_the_nearest_name_is_suggested():
    assert suggest("num_step", {"num_steps": "M"}) == suggest("NUM_STEPS", {"num_steps": "M"}) == "Did you mean M? "
    assert suggest("zzz", ["num_steps"]) == ""
