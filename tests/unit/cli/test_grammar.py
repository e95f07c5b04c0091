"""The grammar: what every form of an argument means, and that a mistake names what is wrong."""

from dataclasses import replace

import pytest

from qinco.cli.grammar import parse_arguments, parse_value
from qinco.cli.keys import OPTIONS
from qinco.cli.tasks import ALIASES, KEYS, TASKS
from qinco.config import field_keys
from qinco.errors import ConfigError

TRAIN = ("train", "trainset=x.fvecs", "output=y")
EVAL = ("eval", "model=m", "db=d")
SEARCH = ("search", "model=m", "db=d", "queries=q", "queries_gt=g")


def refused(words, *facts) -> None:
    """Assert that a command line is one clear mistake, whose message holds `facts`."""
    with pytest.raises(ConfigError) as caught:
        parse_arguments(words)
    assert "\n" not in str(caught.value)
    for fact in facts:
        assert fact in str(caught.value)


def test_the_task_may_be_a_word_or_a_key_anywhere():
    words = ["output=y", "trainset=x", "lr=1e-3"]
    assert parse_arguments(["train", *words]) == parse_arguments(["task=train", *words])
    assert parse_arguments(["train", *words]) == parse_arguments([*words, "task=train"])
    assert parse_arguments(["train", *words]) == parse_arguments([words[0], "train", *words[1:]])


@pytest.mark.parametrize("path", ["a=b.npy", "~é.npy", "./~/é.npy", "a~/b", "a b", "x,y", "[1]", "null", "true",
                                  "100_000", "-x", "==", "ü\n", "'a b'", '"', "$M", "\\"])  # fmt: skip
def test_paths_are_verbatim(path):
    assert parse_arguments(["train", f"trainset={path}", "output=y"])["trainset"] == path


def test_paths_may_begin_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/h o")
    settings = parse_arguments(["encode", "model=~/é.pt", "db=~/x.hdf5:train", "output=~/codes/"])
    assert (settings["model"], settings["db"]) == ("/h o/é.pt", "/h o/x.hdf5:train")
    assert settings["output"] == "/h o/codes/", "a folder stays one"
    assert parse_arguments(["info", "file=~/a"])["file"] == ("/h o/a",)
    assert parse_arguments(["download", "deep1M", "mirror=~/x"])["mirror"] == "~/x", "a text is no path"
    assert parse_arguments([*TRAIN[:-1], "output=${oc.env:QINCO_NONE,~/x}/${M}"])["output"] == "/h o/x/8"


@pytest.mark.parametrize(
    "argument, value",
    [
        ("epochs=100_000", 100_000), ("ds.loop=1e6", 1_000_000), ("L=0", 0), ("M='8'", 8), ("epochs=0", 0),
        ("lr=8e-4", 8e-4), ("lr=null", None), ("lr=None", None), ("wd=0", 0.0), ("wd=.5", 0.5),
        ("grad_clip=null", None), ("scheduler.ramp_epochs=3", 3.0),
        ("opq=true", True), ("verbose=False", False), ("cpu=True", True),
        ("model_args=qinco2-S", "qinco2-S"), ("model_args=null", None), ('model_args="qinco1"', "qinco1"),
        ("A=16", 16), ("A=null", 0), ("A=0", 0), ("B=0", 1), ("B=null", 1), ("B=4", 4),
        ("de=null", None), ("de=0", None), ("de=24", 24),
        ("tensorboard='a b'", "'a b'"), ("device=cuda:3", "cuda:3"),
        ("scheduler.name=reduce_lr_plateau", "plateau"), ("scheduler.name=plateau", "plateau"),
    ],
)  # fmt: skip
def test_values(argument, value):
    key, settings = argument.partition("=")[0], parse_arguments([*TRAIN, argument])
    assert (settings[key], type(settings[key])) == (value, type(value))
    assert settings.given(key)


def test_lists():
    for text, value in (("[4,10]", (4, 10)), ("[ 4 , 10 ]", (4, 10)), ("[4]", (4,)), ("4", (4,))):
        assert parse_value(KEYS["search.nprobe"], text) == value
    for text in ("4,10", "[]", "[4,]", "[4", "[a]", "[0]", "[[4]]"):
        with pytest.raises(ConfigError, match=r"search\.nprobe .*\[4,10\]"):
            parse_value(KEYS["search.nprobe"], text)


def test_defaults_are_not_given():
    settings = parse_arguments(TRAIN)
    assert (settings["lr"], settings["epochs"], settings["batch"], settings["A"]) == (None, 60, None, None)
    assert (settings["ds.valset"], settings["ds.db"], settings["recipe"]) == (10_000, None, "default")
    assert not settings.given("ds.valset")
    assert parse_arguments([*TRAIN, "ds.valset=10_000"]).given("ds.valset")


def test_given_values_by_the_fields_that_they_stand_for():
    settings = parse_arguments([*TRAIN, "M=8", "wd=0.2", "C=4", "scheduler.name=reduce_lr_plateau", "ds.valset=9"])
    assert settings.fields(*OPTIONS) == {
        "num_steps": 8, "weight_decay": 0.2, "num_pairs": 4, "schedule": "plateau", "num_valid": 9,
    }  # fmt: skip


@pytest.mark.parametrize("argument, expected", [
    ("epochs=many", "an integer of at least 0, not 'many'"), ("epochs=-1", "not '-1'"),
    ("epochs=1.5", "not '1.5'"), ("B=99999999999999999999", "at most 9223372036854775807"),
    ("ds.db=1e30", "at most 9223372036854775807"), ("epochs=true", "not 'true'"), ("epochs=1e400", "not '1e400'"),
    ("epochs=" + "9" * 5000, "an integer"), ("epochs=٣", "not '٣'"), ("epochs=null", "not 'null'"),
    ("M=x", "an integer of at least 1, or null, not 'x'"), ("lr=0", "a number above 0, or null, not '0'"),
    ("lr=nan", "not 'nan'"), ("lr=1__0", "not '1__0'"), ("wd=-1", "a number of at least 0, not '-1'"),
    ("verbose=1", "true or false, not '1'"), ("recipe=papers", "one of default, paper, not 'papers'"),
    ("engine=cuda", "one of auto, "), ("M='", 'not "\'"'), ("M=''", "M="), ("device=gpu", "not 'gpu'"),
    ("lr=", "a number above 0, or null"), ("tensorboard=", "a path"),
])  # fmt: skip
def test_wrong_values(argument, expected):
    refused([*TRAIN, argument], argument.partition("=")[0], expected)


@pytest.mark.parametrize("argument, facts", [
    ("epoch=3", ["'epoch'", "Did you mean epochs?"]), ("ramp_epoch=3", ["Did you mean scheduler.ramp_epochs?"]),
    ("ds.val_set=3", ["Did you mean ds.valset?"]), ("num_step=3", ["Did you mean M?"]),
    ("embeddim=3", ["Did you mean de?"]),
    ("num_short=3", ["task train has no key num_short; query, search and plan have"]),
    ("num_epochs=3", ["Did you mean epochs?"]), ("learning_rate=3", ["Did you mean lr?"]),
    ("n_clusters=3", ["Did you mean K?"]), ("nlist=3", ["Did you mean ivf_K?"]), ("M=8 num_steps=8", ["twice"]),
    ("ncentroids=3", ["Did you mean ivf_K?"]), ("d_model=3", ["Did you mean de?"]),
    ("model_args=qinco2-s", ["Did you mean qinco2-S?"]), ("zzz=3", ["'zzz'", "qinco train --help"]),
    ("--lr=3", ["'lr=3'", "'--lr=3'"]), ("+lr=3", ["'lr=3'"]), ("++lr=3", ["'lr=3'"]),
    ("--multirun", ["'--multirun'"]), ("-x", ["'-x'", "--help, --version, --cfg, --json-logs"]),
    ("~lr", ["'~lr'"]), ("hydra.run.dir=x", ["hydra.run.dir", "leave it out"]),
    ("hydra/job_logging=none", ["hydra/job_logging", "leave it out"]),
    ("env.PYTORCH_JIT=0", ["env.PYTORCH_JIT", "leave it out"]), ("inference=true", ["inference", "leave it out"]),
    ("ivf_in_use=true", ["ivf_in_use", "leave it out"]), ("lr", ["'lr'", "key=value"]), ("", ["''"]),
    ("=3", ["'=3'"]), ("trainset=z", ["trainset", "twice"]), ("task=train", ["twice"]), ("task=eval", ["twice"]),
    ("queries=q", ["task train has no key queries; query, search and compare have"]),
    ("index=i", ["task train has no key index; eval and search have"]),
])  # fmt: skip
def test_wrong_arguments(argument, facts):
    refused([*TRAIN, *(argument.split() or [""])], *facts)


def test_long_names_are_those_of_python():
    long = "num_steps=4 codebook_size=16 embed_dim=8 preset=qinco2-M num_pairs=9 beam_width=3 batch_size=7 num_parts=2"
    short = "M=4 K=16 de=8 model_args=qinco2-M C=9 B=3 batch=7 pq=2"
    assert parse_arguments([*TRAIN, *long.split()]) == parse_arguments([*TRAIN, *short.split()])
    assert parse_arguments(["train", "trainset=x", "M=16", "output=${num_steps}"])["output"] == "16"
    searched = parse_arguments([*SEARCH, "num_short=[7]", "ef_search=5"])
    assert (searched["search.nshort"], searched["search.quantizer_efSearch"]) == ((7,), (5,))


@pytest.mark.parametrize("name", ["k", "m", "num_mid", "ramp", "beam", "verify"])
def test_a_hint_is_the_right_one_or_none(name):
    with pytest.raises(ConfigError) as caught:
        parse_arguments([*TRAIN, f"{name}=10"])
    assert "Did you mean" not in str(caught.value)


def test_unknown_tasks():
    refused(["trian"], "'trian'", "Did you mean train?")
    refused(["lr=3"], "no task")


def test_an_index_takes_the_place_of_the_database_and_of_the_model():
    settings = parse_arguments(["search", "index=i", "queries=q", "queries_gt=g", "nprobe=[4,8]", "search.nshort=7"])
    assert (settings["search.nprobe"], settings["search.nshort"]) == ((4, 8), (7,))
    assert parse_arguments(["search", "index=i", "db=deep1M"])["queries"] is None
    refused(["search", "index=i", "model=m"], "search needs either queries=", "or db=")
    refused(["search"], "search needs either model=", "or index=", "; either queries=")


def test_what_the_codes_say_is_left_open_in_the_kind_of_an_index():
    build = ["build_index", "encoded_db=d", "encoded_trainset=t", "trainset=x", "output=o"]
    for words, expected in (
        ([], "IVF${ivf_K}_HNSW32,RQ${M}x8_Nqint8"),
        (["search.index_key=IVF${ivf_K},LSQ${M}x4"], "IVF${ivf_K},LSQ${M}x4"),
        (["index_key=IVF${ivf_K},RQ${M}x8", "M=8"], "IVF${ivf_K},RQ8x8"),
        (["index_key=IVF${seed},RQ${M}x8"], "IVF0,RQ${M}x8"),
    ):
        assert parse_arguments([*build, *words])["search.index_key"] == expected
    refused([*build[:-1], "output=${M}"], "M has no value")


def test_reused_command_lines():
    """What other tasks' command lines carry along is accepted by every task, and `given` says so."""
    carried = ["cpu=true", "verbose=false", "seed=3", "mse_scale=2", "ds.loop=5", "ds.db=9", "enc_max_bs=4", "batch=8"]
    carried += ["K=256", "M=8", "L=2", "de=24", "dh=32", "ivf_K=1024", "model_args=qinco2-L", "qinco1_mode=false"]
    commands = [TRAIN, EVAL, SEARCH, ("decode", "model=m", "codes=c", "output=o"), ("info", "f"), ("doctor",)]
    commands += [("ivf_centroids", "output=o", "db=d", "ds.valset=3"), ("convert", "model=m", "output=o"), ("bench",)]
    for command in commands:
        settings = parse_arguments([*command, *carried])
        assert (settings["ds.db"], settings["seed"], settings["mse_scale"]) == (9, 3, 2.0)


def test_only_one_kind_of_preselection_is_given():
    refused([*EVAL, "C=64", "A=null"], "A=0 and C=64")
    assert parse_arguments([*EVAL, "C=null", "A=4"])["C"] is None


def test_missing_keys_are_named_together():
    refused(["encode", "db=x"], "encode needs model= (", "; output= (")
    refused(["train"], "output= (", "; either trainset= (", "or db= (the name of a data set)")
    for task in TASKS.values():
        if task.required:
            refused([task.name], *(f"{name}= (" for names in task.required for name in names.split("|")))


def test_encoding_the_training_set_needs_no_database():
    assert parse_arguments(["encode", "model=m", "output=o", "encode_trainset=true", "trainset=t"])["db"] is None
    refused(["encode", "model=m", "output=o", "encode_trainset=false"], "needs either db=", "or encode_trainset=")


def test_words_without_a_key():
    assert parse_arguments(["info", "a", "/x=3/b"])["file"] == ("a", "/x=3/b")
    assert parse_arguments(["task=info", "a"])["file"] == ("a",)
    assert parse_arguments(["info", "file=a=b"])["file"] == ("a=b",)
    assert parse_arguments(["download", "deep1M", "small=true", "bigann1M"])["name"] == ("deep1M", "bigann1M")
    assert parse_arguments(["download", "name=deep1M", "mirror=http://x/?a=b"])["mirror"] == "http://x/?a=b"
    assert parse_arguments(["completion", "zsh"])["shell"] == "zsh"
    refused(["info", "a", "file=b"], "'file=b' and 'a'")
    refused(["completion", "zsh", "fish"], "'fish'", "'zsh'")
    refused(["completion", "tcsh"], "bash, zsh, fish, not 'tcsh'")
    refused(["info", ""], "''")


def test_shares():
    command = ("encode", "model=m", "db=d", "output=o")
    assert parse_arguments([*command, "shard=0/4"])["shard"] == (0, 4)
    assert parse_arguments([*command, "shard='4/4'"])["shard"] == (4, 4)
    assert parse_arguments(command)["shard"] is None
    for text in ("5/4", "0/0", "1", "1/", "-1/4", "1/4/2", "a/b", "1 /4", "1/" + "9" * 400):
        refused([*command, f"shard={text}"], "shard", "1/4")


@pytest.mark.parametrize("output, expected", [
    ("r/${model_args}-${M}x8.pt", "r/qinco2-S-16x8.pt"), ("${L}-${de}-${dh}-${K}-${ivf_K}", "2-128-256-256-1024"),
    ("${ds.trainset}/${ds.loop}/${epochs}", "100000/10000000/60"), ("${trainset}.pt", "t/deep1M.fvecs.pt"),
    ("${ trainset }.pt", "t/deep1M.fvecs.pt"),
    ("${db}-${lr}-${wd}-${cpu}-${task}", "deep1M-0.0008-0.1-false-train"),
    ("${scheduler.name}", "reduce_lr_plateau"), ("a${A}-b${B}.pt", "a16-b32.pt"), ("c${C}-b${B}", "c80-b40"),
    ("${oc.env:QINCO_FOLDER}/x", "f o/x"),
    ("${oc.env:QINCO_NONE,d}/${oc.env:QINCO_NONE,${M}}/${oc.env:QINCO_NONE,'a, b'}", "d/16/a, b"),
    ("${oc.env:QINCO_NONE, ${oc.env:QINCO_FOLDER}}", "f o"), ("\\${M}-${M}-\\\\${M}-}{$", "${M}-16-\\${M}-}{$"),
    ("${search.index_key}", "IVF1024_HNSW32,RQ16x8_Nqint8"),
])  # fmt: skip
def test_interpolation(output, expected, monkeypatch):
    monkeypatch.setenv("QINCO_FOLDER", "f o")
    monkeypatch.delenv("QINCO_NONE", raising=False)
    words = ["train", f"output={output}", "trainset=t/${db}.fvecs", "db=deep1M", "M=1_6", "ds.trainset=1e5", "lr=8e-4"]
    words += ["scheduler.name=reduce_lr_plateau", "ivf_K=1024"]
    assert parse_arguments(words)["output"] == expected
    assert parse_arguments(words[::-1])["output"] == expected


def test_interpolated_values_are_parsed():
    settings = parse_arguments([*TRAIN, "dh=${de}", "de=${oc.env:QINCO_NONE,'32'}", "ds.trainset=${batch}", "C=${B}"])
    assert (settings["dh"], settings["de"], settings["ds.trainset"], settings["C"]) == (32, 32, None, 40)
    assert settings.given_keys == {"trainset", "output", "dh", "de", "ds.trainset", "C"}
    assert parse_arguments(["info", "${oc.env:QINCO_NONE,a}", "b"])["file"] == ("a", "b")
    shared = parse_arguments(["encode", "model=m", "db=d", "shard=1/4", "output=${shard}-${nprobe}"])
    assert shared["output"] == "1/4-[4]"


@pytest.mark.parametrize("words, fact", [
    (["output=${outputs}"], "Did you mean output?"), (["output=${num_step}"], "Did you mean M?"),
    (["output=${qqq}"], "${qqq}"), (["output=${}"], "${}"), (["output=${output}"], "output -> output"),
    (["output=${model}", "model=x${tensorboard}", "tensorboard=${model}"], "model -> tensorboard -> model"),
    (["output=x${M"], "output"), (["output=${oc.env:QINCO_NONE}"], "'QINCO_NONE'"),
    (["output=${oc.env:QINCO_NONE,null}"], "oc.env:QINCO_NONE,null has no value"),
    (["output=${now:%Y}"], "${now:%Y}"), (["output=${ivf_K}.npy"], "ivf_K has no value"),
    (["output=${lr}"], "lr has no value"), (["output=x", "epochs=${M}${wd}"], "not '80.1'"),
    (["output=x", "epochs=${ds.trainset}"], "not 'null'"),
])  # fmt: skip
def test_wrong_interpolations(words, fact):
    refused(["train", "trainset=x", *words], fact)


def test_a_task_that_makes_no_model_has_the_sizes_of_a_given_preset_only():
    refused(["eval", "db=d", "model=${M}.pt"], "M has no value")
    given = parse_arguments(["eval", "db=d", "model=${model_args}-${M}-${L}.pt", "model_args=qinco2-M"])
    assert given["model"] == "qinco2-M-8-4.pt"


def test_the_declarations_agree():
    assert ALIASES["nprobe"] == "search.nprobe" and not set(ALIASES) & set(KEYS)
    assert {ALIASES.get(key, key) for key in field_keys(*OPTIONS).values()} <= set(KEYS)
    for task in TASKS.values():
        assert task.positional is None or task.positional in task.required
        assert all(task.reads(name) for names in task.required for name in names.split("|")), task.name
        for key in task.keys:
            is_same = replace(KEYS[key.name], help=key.help) == key
            assert is_same or key.name in ("bytes", "ids", "vectors"), "a key has the same values in all tasks"
    for key in KEYS.values():
        assert key.kind != "choice" or key.default in (*key.choices, None)
        assert set(key.open_references) <= set(KEYS), key.name


def test_a_hint_is_a_key_with_an_effect_in_the_task():
    for argument, hint in (("batchsize=3", "search.batch_size"), ("distance=l2", "metric"), ("top_k=3", "k")):
        refused(["search", "index=i", "queries=q", argument], f"Did you mean {hint}?")
    for argument in ("nlist=3", "num_valids=3"):  # ivf_K and ds.valset are accepted by all tasks
        with pytest.raises(ConfigError) as caught:
            parse_arguments(["encode", "model=m", "db=d", "output=o", argument])
        assert "Did you mean" not in str(caught.value)


def test_a_name_that_two_keys_have_is_that_of_the_task():
    settings = parse_arguments(["search", "index=i", "queries=q", "batch_size=3"])
    assert (settings["search.batch_size"], settings["batch"]) == (3, None)
    assert parse_arguments([*TRAIN, "batch_size=3"])["batch"] == 3
