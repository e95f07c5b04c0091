"""What messages tell people to call, to give and to run exists, and does what they say."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from small_models import random_vectors

import qinco
import qinco.codec.fit
from qinco.cli import main
from qinco.cli.grammar import parse_arguments
from qinco.cli.tasks import TASKS, find_key
from qinco.datasets.catalogue import DATASETS
from qinco.errors import QincoError

SOURCES = sorted(Path(qinco.__file__).parent.rglob("*.py"))
PUBLIC = [getattr(qinco, name) for name in qinco.__all__ if name != "__version__"]
CALLS = [call for call in PUBLIC if callable(call)]
CALLS += [method for kind in PUBLIC if inspect.isclass(kind) for base in kind.__mro__ for method in vars(base).values()]
CALLS = [call for call in (getattr(call, "__func__", call) for call in CALLS) if callable(call)]
# Of other programs, the environment, or frameworks and their adapters; and what is looked at, not given.
OTHERS = {"QINCO_NATIVE_LEVEL", "QINCO_NUM_THREADS", "RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "small", "add_id",
          "n_pairwise_codebooks", "key", "starts_from_coarse", "num_lists", "asarray", "flatnonzero", "range", "ravel",
          "toarray", "unique", "view", "corpus_embeddings", "corpus_index", "quantize",
          "average_vector"}  # fmt: skip


def messages():
    """The texts of errors, warnings and log lines, with the file that each is in."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name.endswith(("Error", "warning", "warn", "info", "Interrupt")):
                    texts = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant)]
                    yield path.name, " ".join(text for text in texts if isinstance(text, str))


TEXTS = sorted(set(messages()))


def arguments() -> set[str]:
    names = set(inspect.signature(qinco.codec.fit.fit).parameters)
    for call in CALLS:
        try:
            names |= set(inspect.signature(call).parameters)
        except (TypeError, ValueError):
            continue
    return names


def test_calls_that_messages_name_exist():
    found = 0
    for path, text in TEXTS:
        for name in re.findall(r"\b(?:qinco|Codec|Index|Codes|VectorSource)\.[a-zA-Z_.]+\w", text):
            value = qinco
            for part in name.removeprefix("qinco.").split("."):
                assert hasattr(value, part), (path, name)
                value = getattr(value, part)
            found += 1
    assert found > 3


def test_settings_that_messages_name_exist():
    known = arguments() | OTHERS
    for path, text in TEXTS:
        for name in re.findall(r"(?<![\w.{])([A-Za-z][\w.]*)=(?!=)", text):
            assert name in known or find_key(name) is not None, (path, name, text)


def test_functions_that_messages_name_exist():
    found = []
    known = arguments() | OTHERS | set(qinco.__all__) | set(TASKS)
    known |= {name for kind in PUBLIC if inspect.isclass(kind) for name in dir(kind)}
    for path, text in TEXTS:
        for name in re.findall(r"(?:\b[Ss]ee|\buse|\bcall|\bgive|\btask) ([a-z]+_[a-z_]+)\b", text):
            assert name in known or find_key(name) is not None, (path, name, text)
            found.append(name)
        for name in re.findall(r"qinco ([a-z_]+) [a-z]+=", text):
            assert name in TASKS, (path, name)
    assert len(found) > 3, found


@pytest.fixture
def codec():
    return qinco.Codec.fit(random_vectors(300, 4), M=2, K=16, L=0, epochs=0, device="cpu")


def refusal(call, *arguments, **settings) -> str:
    with pytest.raises((QincoError, TypeError)) as caught:
        call(*arguments, **settings)
    return str(caught.value)


def test_a_codec_is_loaded_as_messages_say(codec, tmp_path):
    codec.save(tmp_path / "c.safetensors")
    assert "Codec.load" in refusal(qinco.Codes.load, tmp_path / "codes.raw", str(tmp_path / "c.safetensors"))
    for load in (qinco.load_codec, qinco.Codec.load, qinco.ProductCodec.load):
        assert load(tmp_path / "c.safetensors").fingerprint() == codec.fingerprint()


def test_what_exists_is_replaced_as_messages_say(codec, tmp_path):
    x, output = random_vectors(300, 4), tmp_path / "codes.npy"
    qinco.encode_file(codec, x, output)
    assert "overwrite=true" in refusal(qinco.encode_file, codec, x, output)
    assert qinco.encode_file(codec, x, output, overwrite=True).complete


def test_single_vectors_and_sparse_ones_are_given_as_messages_say(codec):
    (x,) = random_vectors(1, 4)
    assert "[None]" in refusal(codec.encode, x)
    assert codec.encode(x[None]).shape == (1, 2)


def test_other_settings_are_those_that_messages_say(codec):
    x = random_vectors(60, 4)
    remedy = re.search(r"at most (\d+)", refusal(qinco.Codec.fit, x, num_valid=59))
    assert qinco.Codec.fit(x, M=1, K=16, L=0, epochs=0, num_valid=int(remedy[1]), device="cpu")
    assert "codebook_size (K)" in refusal(qinco.Codec.fit, x, K=64)
    hint = re.search(r"Did you mean (\w+)\?", refusal(qinco.Codec.fit, x, num_epochs=0))
    assert qinco.Codec.fit(x, M=1, K=16, L=0, device="cpu", **{hint[1]: 0})


def test_an_index_without_a_codec_is_searched_and_filled_as_messages_say(codec, tmp_path):
    index = qinco.Index.build(codec, random_vectors(300, 4), num_lists=2)
    index.save(tmp_path / "index")
    bare = qinco.Index(None, index.parts)
    assert "codec=" in refusal(bare.add, random_vectors(3, 4))
    assert len(qinco.Index.load(tmp_path / "index", codec=codec).add(random_vectors(3, 4))) == 3


def test_missing_data_sets_are_downloaded_as_messages_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["ivf_centroids", "ivf_K=4", "output=c.npy", f"db={next(iter(DATASETS))}"]) == 3
    command = re.search(r"qinco (download \S+)", capsys.readouterr().err)
    assert parse_arguments(command[1].split())["name"] == (next(iter(DATASETS)),)
