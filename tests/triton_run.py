"""Runs in a process whose kernels are interpreted: what `test_triton_engine` compares there.

Kernels are interpreted or compiled as TRITON_INTERPRET says when they are decorated: a process does one or other.
"""

import json
import logging
import sys
import traceback
from dataclasses import replace

import numpy as np
import torch
import triton_interpreter
from search_problems import RULES, Problem, applies, random_problem
from small_models import ARCHITECTURES, random_model, random_vectors

from qinco.codec import Codec
from qinco.config import EncodeOptions, ModelConfig
from qinco.engines import triton_engine
from qinco.engines.engine import choose_engine
from qinco.engines.tensors import pack
from qinco.engines.torch_engine import TorchTensors
from qinco.engines.triton import selection
from qinco.engines.triton.launches import SPILLED, evaluate_streamed, launch
from qinco.engines.triton.packed import power_above
from qinco.engines.triton.ways import Way, ways_for

COUNT = 5


class Warnings(logging.Handler):
    """What has been warned of."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def short(problem: Problem) -> Problem:
    """The first vectors: a program is slow to interpret, and there is one for each."""
    few = Problem(problem.model, problem.x_ND[:COUNT])
    few.start_ND = problem.start_ND[:COUNT]
    return few


def searched(name: str, rule: str, precision="float32", way: str | None = None, steps: int | None = None) -> None:
    """An architecture is encoded and decoded as by the torch engine."""
    problem, options = short(random_problem(name)), RULES[rule]
    assert applies(options, problem.model.config)
    ways = ways_for(problem.model.config, torch.bfloat16 if precision == "bf16" else torch.float32, 90)
    packed = triton_engine.TritonTensors(problem.model, precision, [each for each in ways if way in (None, each.name)])
    codes_NM, reached_ND = packed.encode_tensors(problem.x_ND, problem.start_ND, options, steps)
    assert packed.verdict(options).way is not None, packed.verdict(options).fault
    wanted_NM, wanted_ND = packed.torch.encode_tensors(problem.x_ND, problem.start_ND, options, steps)
    decoded_ND = packed.decode_tensors(wanted_NM, problem.start_ND)
    expected_ND = packed.torch.decode_tensors(wanted_NM, problem.start_ND)
    assert packed.verdict(None).way is not None, packed.verdict(None).fault
    if precision == "float32":
        assert torch.equal(codes_NM, wanted_NM)
        torch.testing.assert_close(reached_ND, wanted_ND, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(decoded_ND, expected_ND, rtol=1e-4, atol=1e-4)
    else:
        errors = [problem.errors(found).mean() for found in (reached_ND, wanted_ND)]
        assert abs(float(errors[0] / errors[1]) - 1) < 0.02
        assert 0 < float((decoded_ND - expected_ND).norm() / expected_ND.norm()) < 0.03


def several_pieces(precision: str, way: str) -> None:
    """Widths that are cut into several pieces and chunks, and are no multiples of them."""
    wide = {"embed_dim": 160, "hidden_dim": 80} if way == "layers" else {"embed_dim": 100, "hidden_dim": 70}
    config = ModelConfig(dim=70, num_steps=2, codebook_size=16, num_blocks=2, **wide)
    model = random_model(config, 1)
    for parameter in model.parameters():
        parameter.mul_(2 / parameter.shape[-1] ** 0.5)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    ways = [each for each in ways_for(config, dtype, 90) if each.name == way]
    packed = triton_engine.TritonTensors(model, precision, ways)
    x_ND, start_ND = torch.from_numpy(random_vectors(COUNT, 70)) / 5, torch.zeros(COUNT, 70)
    options = EncodeOptions(num_pairs=20, beam_width=4)
    codes_NM, _ = packed.encode_tensors(x_ND, start_ND, options)
    assert packed.verdict(options).way is ways[0], packed.verdict(options).fault
    packed.decode_tensors(codes_NM, start_ND)
    assert packed.verdict(None).way is ways[0], packed.verdict(None).fault
    if precision == "float32":
        assert torch.equal(codes_NM, packed.torch.encode_tensors(x_ND, start_ND, options)[0])


def codecs() -> None:
    """What a codec asks of an engine: arrays, several models behind a rotation, lists, prefixes, and training."""
    options = EncodeOptions(num_pairs=6, beam_width=3, engine="triton", precision="float32")
    rotation_DD = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0].astype(np.float32)
    parts = [random_model(ARCHITECTURES["projected"], seed) for seed in (0, 1)]
    for codec in (
        Codec(parts, options, rotation_DD=rotation_DD),
        Codec(random_model(ARCHITECTURES["coarse"]), options),
    ):
        x_ND, plain = random_vectors(COUNT, codec.dim), codec.with_options(engine="torch")
        codes = codec.encode(x_ND, progress=False)
        assert np.array_equal(codes.codes, plain.encode(x_ND, progress=False).codes)
        shorter = [each.encode(x_ND, num_steps=2, progress=False).codes for each in (codec, plain)]
        assert np.array_equal(*shorter)
        np.testing.assert_allclose(codec.decode(codes), plain.decode(codes), rtol=1e-4, atol=1e-4)
        for found, wanted in zip(codec.decode_prefixes(codes), plain.decode_prefixes(codes), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    of_engine = triton_engine.TritonTensors, TorchTensors  # weights that change after a batch are not rearranged
    assert [type(pack(parts[0], "triton", "float32", is_for_one_batch=once)) for once in (False, True)] == [*of_engine]


def selections() -> None:
    """Ties, infinities, what is no number, beams that are no power of two: the first of equal ones, exactly."""
    generator = torch.Generator().manual_seed(4)
    for beam, wanted, K in ((5, 13, 16), (1, 4, 16), (3, 48, 16), (32, 64, 256)):
        distances = torch.randint(0, 9, (3 * beam, K), generator=generator).float()
        distances[0, 3], distances[0, 5], distances[1 % beam, 2] = torch.inf, torch.nan, -3.0
        pairs = torch.full((3, wanted), -1, dtype=torch.int32)
        rows = power_above(beam)
        launch(selection.propose_kernel, (3,), distances / -2, torch.zeros(3 * beam), torch.zeros(K), pairs,
               BEAM=beam, K=K, WANTED=wanted, ROWS=rows, PART=min(rows, 8))  # fmt: skip
        flat = distances.nan_to_num(torch.inf, torch.inf).clamp(min=0).view(3, -1)
        assert torch.equal(pairs - torch.arange(3)[:, None] * beam * K, first_of(flat, wanted))
    for count, wanted in ((20, 7), (33, 32), (16, 1)):
        estimates = torch.randint(-9, 9, (3, count), generator=generator).float()
        estimates[0, 3], estimates[1, 5], estimates[2, 2] = torch.inf, torch.nan, -torch.inf
        found = torch.full((3, wanted), -1, dtype=torch.int32)
        pairs = torch.arange(count, dtype=torch.int32).repeat(3, 1)
        launch(selection.shorten_kernel, (3,), estimates, pairs, found, C=count, WANTED=wanted,
               PADDED=max(16, power_above(count)))  # fmt: skip
        assert torch.equal(found.long(), first_of(estimates.nan_to_num(torch.inf, torch.inf, -torch.inf), wanted))


def first_of(values, wanted: int):
    return torch.sort(values, dim=1, stable=True).indices[:, :wanted].sort(dim=1).values


def refused(way: Way, reason: str) -> None:
    """A way that is wrong is found out: torch serves, and one warning says why."""
    problem, options = short(random_problem("low rank")), RULES["everything"]
    triton_engine.forget()
    heard = Warnings()
    logging.getLogger("qinco").addHandler(heard)
    try:
        for _ in range(2):
            packed = triton_engine.TritonTensors(problem.model, "float32", [way])
            codes_NM, _ = packed.encode_tensors(problem.x_ND, problem.start_ND, options)
            wanted_NM, _ = packed.torch.encode_tensors(problem.x_ND, problem.start_ND, options)
            assert torch.equal(codes_NM, wanted_NM)
            decoded_ND = packed.decode_tensors(codes_NM, problem.start_ND)
            assert torch.equal(decoded_ND, packed.torch.decode_tensors(codes_NM, problem.start_ND))
    finally:
        logging.getLogger("qinco").removeHandler(heard)
    (message,) = heard.messages
    assert reason in message, message
    assert reason in triton_engine.supports(problem.model.config, "cpu")
    assert choose_engine("auto", problem.model.config, "cpu").name != "triton"
    triton_engine.forget()


def defects() -> None:
    (right, *_) = ways_for(random_problem("low rank").model.config, torch.float32, 90)
    assert right.evaluate is evaluate_streamed
    calls = []

    def wrong_distance(step, plan, pairs, parts, residual_RD):
        distances, streams = right.evaluate(step, plan, pairs, parts, residual_RD)
        return distances.flip(0), streams

    def no_number(step, plan, pairs, parts, residual_RD):
        distances, streams = right.evaluate(step, plan, pairs, parts, residual_RD)
        return distances, streams * torch.nan

    def never_the_same(step, plan, pairs, parts, residual_RD):
        calls.append(plan)
        return (wrong_distance if len(calls) > 2 else right.evaluate)(step, plan, pairs, parts, residual_RD)

    def unlaunchable(step, plan, pairs, parts, residual_RD):
        raise RuntimeError("out of resource: shared memory")

    def spilling(step, plan, pairs, parts, residual_RD):
        SPILLED.add("network_kernel")  # as `launch` does when a driver says so
        return right.evaluate(step, plan, pairs, parts, residual_RD)

    def wrong_decoding(steps, stacked, plan, codes_NM, start_ND):
        return 1.1 * right.decode(steps, stacked, plan, codes_NM, start_ND)

    refused(replace(right, evaluate=wrong_distance), "of the codes are the torch engine's")
    refused(replace(right, evaluate=no_number), "no finite numbers")
    refused(replace(right, evaluate=never_the_same), "a second encoding gives other codes")
    refused(replace(right, evaluate=unlaunchable), "shared memory")
    refused(replace(right, evaluate=spilling), "spills registers")
    refused(replace(right, decode=wrong_decoding), "from the torch engine's")


def in_bf16() -> None:
    """There is no code for code to compare in bf16: a defect shows in the error."""
    model = random_model(ModelConfig(dim=32, num_steps=3, codebook_size=16, num_blocks=1, hidden_dim=32), 1)
    (right, *_) = ways_for(model.config, torch.bfloat16, 90)

    def forgetful(step, plan, pairs, parts, residual_RD):
        return right.evaluate(step, plan, pairs, parts * 0, residual_RD)

    options, faults = EncodeOptions(num_pairs=16, beam_width=4), []
    for way in (right, replace(right, evaluate=forgetful)):
        packed = triton_engine.TritonTensors(model, "bf16", [way])
        faults.append(packed.verdict(options).fault)
    assert faults[0] is None and "times the torch engine's" in faults[1], faults


def main(calls: list[list]) -> None:
    """Print, as one line of JSON a call, what went wrong (or null)."""
    torch.set_num_threads(1)
    triton_interpreter.repair()
    for name, *arguments in calls:
        try:
            globals()[name](*arguments)
            print(json.dumps(None), flush=True)
        except Exception:
            print(json.dumps(traceback.format_exc()), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
