"""The grammar: what every form of an argument means, and that every mistake is one clear sentence."""

import pytest

from qinco.cli.keys import ALIASES, KEYS
from qinco.cli.overrides import parse_arguments
from qinco.cli.tasks import TASKS
from qinco.errors import ConfigError

TRAIN = ("train", "trainset=x.fvecs", "output=y")
EVAL = ("eval", "model=m", "db=d")
SEARCH = ("search", "model=m", "db=d", "queries=q", "queries_gt=g")


def test_the_task_may_be_a_word_or_a_key_anywhere():
    words = ["output=y", "trainset=x", "lr=1e-3"]
    assert parse_arguments(["train", *words]) == parse_arguments(["task=train", *words])
    assert parse_arguments(["train", *words]) == parse_arguments([*words, "task=train"])
    assert parse_arguments(["train", *words]) == parse_arguments([words[0], "train", *words[1:]])


@pytest.mark.parametrize(
    "path",
    [
        "a=b.npy",
        "~é.npy",
        "./~/é.npy",
        "a~/b",
        "a b",
        "x,y",
        "[1]",
        "null",
        "true",
        "100_000",
        "-x",
        "==",
        "ü\n",
        "'a b'",
        '"',
        "$M",
        "\\",
    ],
)
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
    "argument, key, value",
    [
        ("epochs=100_000", "epochs", 100_000),
        ("ds.loop=1e6", "ds.loop", 1_000_000),
        ("lr=8e-4", "lr", 8e-4),
        ("lr=null", "lr", None),
        ("lr=None", "lr", None),
        ("wd=0", "wd", 0.0),
        ("wd=.5", "wd", 0.5),
        ("grad_clip=null", "grad_clip", None),
        ("opq=true", "opq", True),
        ("verbose=False", "verbose", False),
        ("model_args=qinco2-S", "model_args", "qinco2-S"),
        ("model_args=null", "model_args", None),
        ("A=16", "A", 16),
        ("A=null", "A", 0),
        ("A=0", "A", 0),
        ("B=0", "B", 1),
        ("B=null", "B", 1),
        ("B=4", "B", 4),
        ("de=null", "de", None),
        ("de=0", "de", None),
        ("de=24", "de", 24),
        ("L=0", "L", 0),
        ("M='8'", "M", 8),
        ('model_args="qinco1"', "model_args", "qinco1"),
        ("cpu=True", "cpu", True),
        ("tensorboard='a b'", "tensorboard", "'a b'"),
        ("device=cuda:3", "device", "cuda:3"),
        ("scheduler.ramp_epochs=3", "scheduler.ramp_epochs", 3.0),
        ("scheduler.name=reduce_lr_plateau", "scheduler.name", "reduce_lr_plateau"),
    ],
)
def test_values(argument, key, value):
    settings = parse_arguments([*TRAIN, argument])
    assert settings[key] == value
    assert type(settings[key]) is type(value)
    assert settings.given(key)


@pytest.mark.parametrize("text, value", [("[4,10]", (4, 10)), ("[ 4 , 10 ]", (4, 10)), ("[4]", (4,)), ("4", (4,))])
def test_lists(text, value):
    from qinco.cli.overrides import parse_value

    assert parse_value(KEYS["search.nshort"], text) == value


@pytest.mark.parametrize("text", ["4,10", "[]", "[4,]", "[4", "[a]", "[0]", "[[4]]"])
def test_wrong_lists(text):
    from qinco.cli.overrides import parse_value

    with pytest.raises(ConfigError, match=r"search\.nshort must be a list, such as \[4,10\]"):
        parse_value(KEYS["search.nshort"], text)


def test_defaults_are_not_given():
    settings = parse_arguments(TRAIN)
    assert (settings["lr"], settings["epochs"], settings["batch"], settings["A"]) == (None, 60, None, None)
    assert (settings["ds.valset"], settings["ds.db"], settings["recipe"]) == (10_000, None, "default")
    assert not settings.given("ds.valset")
    assert parse_arguments([*TRAIN, "ds.valset=10_000"]).given("ds.valset")


@pytest.mark.parametrize(
    "argument, expected",
    [
        ("epochs=many", "epochs must be an integer of at least 1, not 'many'"),
        ("epochs=0", "epochs must be an integer of at least 1, not '0'"),
        ("epochs=1.5", "epochs must be an integer"),
        ("B=99999999999999999999", "B must be at most 9223372036854775807, not '99999999999999999999'"),
        ("ds.db=1e30", "ds.db must be at most 9223372036854775807, not '1e30'"),
        ("epochs=true", "epochs must be an integer"),
        ("epochs=1e400", "epochs must be an integer"),
        ("epochs=" + "9" * 5000, "epochs must be an integer"),
        ("epochs=٣", "epochs must be an integer"),
        ("epochs=null", "epochs must be an integer of at least 1, not 'null'"),
        ("M=x", "M must be an integer of at least 1, or null, not 'x'"),
        ("lr=0", "lr must be a number above 0, or null, not '0'"),
        ("lr=nan", "lr must be a number"),
        ("lr=1__0", "lr must be a number"),
        ("wd=-1", "wd must be a number of at least 0, not '-1'"),
        ("verbose=1", "verbose must be true or false, not '1'"),
        ("recipe=papers", "recipe must be one of default, paper, not 'papers'"),
        ("engine=cuda", "engine must be one of auto, "),
        ("M='", 'M must be an integer of at least 1, or null, not "\'"'),
        ("M=''", "M= has no value: it must be an integer"),
        ("device=gpu", "device must be auto, cpu, cuda or cuda:N, not 'gpu'"),
        ("model_args=qinco2-s", "Did you mean qinco2-S?"),
        ("lr=", "lr= has no value: it must be a number above 0, or null"),
        ("tensorboard=", "tensorboard= has no value: it must be a path"),
    ],
)
def test_wrong_values(argument, expected):
    with pytest.raises(ConfigError) as caught:
        parse_arguments([*TRAIN, argument])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "argument, expected",
    [
        ("epoch=3", "unknown key 'epoch': did you mean epochs?"),
        ("ramp_epochs=3", "did you mean scheduler.ramp_epochs?"),
        ("ds.val_set=3", "did you mean ds.valset?"),
        ("zzz=3", "unknown key 'zzz': qinco train --help lists the keys"),
        ("--lr=3", "write 'lr=3', not '--lr=3'"),
        ("+lr=3", "write 'lr=3', not '+lr=3'"),
        ("--multirun", "unknown option '--multirun'"),
        ("-x", "unknown option '-x': there are --help, --version, --cfg, --json-logs, and settings are written"),
        ("++lr=3", "write 'lr=3', not '++lr=3'"),
        ("~lr", "unexpected argument '~lr'"),
        ("hydra.run.dir=x", "hydra.run.dir cannot be set, there is no Hydra here"),
        ("hydra/job_logging=none", "hydra/job_logging cannot be set, there is no Hydra here"),
        ("env.PYTORCH_JIT=0", "env.PYTORCH_JIT cannot be set, the environment is set outside"),
        ("inference=true", "inference cannot be set, models that are not trained"),
        ("ivf_in_use=true", "ivf_in_use cannot be set, it is known from the model"),
        ("lr", "unexpected argument 'lr': settings are written key=value"),
        ("", "unexpected argument ''"),
        ("=3", "unexpected argument '=3'"),
        ("trainset=z", "trainset is given twice"),
        ("queries=q", "task train has no key queries; search has"),
        ("codes=q", "task train has no key codes; decode has"),
        ("task=train", "the task is given twice"),
        ("task=eval", "the task is given twice"),
        ("index=i", "task train has no key index; eval and search have"),
    ],
)
def test_wrong_arguments(argument, expected):
    with pytest.raises(ConfigError) as caught:
        parse_arguments([*TRAIN, argument])
    assert expected in str(caught.value)


def test_a_key_of_another_task_names_every_task_that_reads_it():
    with pytest.raises(ConfigError, match=r"^task eval has no key lr; train has$"):
        parse_arguments([*EVAL, "lr=1"])
    with pytest.raises(ConfigError, match=r"^task decode has no key A; train, eval, .*convert and bench have$"):
        parse_arguments(["decode", "model=m", "codes=c", "output=o", "A=1"])


def test_an_index_takes_the_place_of_the_database_and_of_the_model():
    settings = parse_arguments(["search", "index=i", "queries=q", "queries_gt=g", "nprobe=[4,8]", "search.nshort=7"])
    assert (settings["search.nprobe"], settings["search.nshort"]) == ((4, 8), (7,))
    assert parse_arguments(["search", "index=i", "db=deep1M"])["queries"] is None
    with pytest.raises(ConfigError, match=r"^task search needs queries= .* or db= .* and queries_gt= "):
        parse_arguments(["search", "index=i", "model=m"])
    with pytest.raises(ConfigError, match=r"^task search needs model= .* or index= .*, queries= .* and queries_gt= "):
        parse_arguments(["search"])


def test_what_the_codes_say_is_left_open_in_the_kind_of_an_index():
    build = ["build_index", "encoded_db=d", "encoded_trainset=t", "trainset=x", "output=o"]
    for words, expected in (
        ([], "IVF${ivf_K}_HNSW32,RQ${M}x8_Nqint8"),
        (["search.index_key=IVF${ivf_K},LSQ${M}x4"], "IVF${ivf_K},LSQ${M}x4"),
        (["index_key=IVF${ivf_K},RQ${M}x8", "M=8"], "IVF${ivf_K},RQ8x8"),
        (["index_key=IVF${seed},RQ${M}x8"], "IVF0,RQ${M}x8"),
    ):
        assert parse_arguments([*build, *words])["search.index_key"] == expected
    with pytest.raises(ConfigError, match="M has no value"):
        parse_arguments([*build[:-1], "output=${M}"])


def test_search_keys_without_their_prefix():
    assert ALIASES["nprobe"] == "search.nprobe"
    assert not set(ALIASES) & set(KEYS)


def test_reused_command_lines():
    """What other tasks' command lines carry along is accepted by every task, and `given` says so."""
    carried = ["cpu=true", "verbose=false", "seed=3", "mse_scale=2", "ds.loop=5", "ds.db=9", "enc_max_bs=4", "batch=8"]
    carried += ["K=256", "M=8", "L=2", "de=24", "dh=32", "ivf_K=1024", "model_args=qinco2-L", "qinco1_mode=false"]
    commands = [TRAIN, EVAL, SEARCH, ("decode", "model=m", "codes=c", "output=o"), ("info", "f"), ("doctor",)]
    commands += [("ivf_centroids", "output=o", "db=d", "ds.valset=3"), ("convert", "model=m", "output=o"), ("bench",)]
    for command in commands:
        settings = parse_arguments([*command, *carried])
        assert (settings["ds.db"], settings["seed"], settings["mse_scale"]) == (9, 3, 2.0)


def test_tasks():
    with pytest.raises(ConfigError, match="unknown task 'trian': did you mean train"):
        parse_arguments(["trian"])
    with pytest.raises(ConfigError, match="no task is given"):
        parse_arguments(["lr=3"])


def test_only_one_rule_of_preselection_counts():
    with pytest.raises(ConfigError, match=r"^A=0 and C=64 exclude each other: give one of them$"):
        parse_arguments([*EVAL, "C=64", "A=null"])
    assert parse_arguments([*EVAL, "C=null", "A=4"])["C"] is None


def test_missing_keys_are_named_together():
    with pytest.raises(ConfigError) as caught:
        parse_arguments(["encode", "db=x"])
    assert str(caught.value) == (
        f"task encode needs model= ({KEYS['model'].summary}) and output= ({KEYS['output'].summary})"
    )
    with pytest.raises(ConfigError, match=r"^task train needs output= .* and trainset= .* or db= "):
        parse_arguments(["train"])
    for task in TASKS.values():
        if task.required:
            with pytest.raises(ConfigError) as caught:
                parse_arguments([task.name])
            assert all(f"{name}= (" in str(caught.value) for names in task.required for name in names.split("|"))


def test_encoding_the_training_set_needs_no_database():
    assert parse_arguments(["encode", "model=m", "output=o", "encode_trainset=true", "trainset=t"])["db"] is None
    with pytest.raises(ConfigError, match="needs trainset="):
        parse_arguments(["encode", "model=m", "output=o", "encode_trainset=true"])
    with pytest.raises(ConfigError, match="needs db="):
        parse_arguments(["encode", "model=m", "output=o", "trainset=t"])


def test_words_without_a_key():
    assert parse_arguments(["info", "a", "/x=3/b"])["file"] == ("a", "/x=3/b")
    assert parse_arguments(["task=info", "a"])["file"] == ("a",)
    assert parse_arguments(["info", "file=a=b"])["file"] == ("a=b",)
    assert parse_arguments(["download", "deep1M", "small=true", "bigann1M"])["name"] == ("deep1M", "bigann1M")
    assert parse_arguments(["download", "name=deep1M", "mirror=http://x/?a=b"])["mirror"] == "http://x/?a=b"
    assert parse_arguments(["completion", "zsh"])["shell"] == "zsh"
    with pytest.raises(ConfigError, match="'file=b' and 'a' are both given"):
        parse_arguments(["info", "a", "file=b"])
    with pytest.raises(ConfigError, match="unexpected argument 'fish': shell is 'zsh' already"):
        parse_arguments(["completion", "zsh", "fish"])
    with pytest.raises(ConfigError, match="shell must be one of bash, zsh, fish, not 'tcsh'"):
        parse_arguments(["completion", "tcsh"])
    with pytest.raises(ConfigError, match="unexpected argument ''"):
        parse_arguments(["info", ""])


def test_shares():
    command = ("encode", "model=m", "db=d", "output=o")
    assert parse_arguments([*command, "shard=0/4"])["shard"] == (0, 4)
    assert parse_arguments([*command, "shard='4/4'"])["shard"] == (4, 4)
    assert parse_arguments(command)["shard"] is None
    for text in ("5/4", "0/0", "1", "1/", "-1/4", "1/4/2", "a/b", "1 /4", "1/" + "9" * 400):
        with pytest.raises(ConfigError, match=r"^shard must be a share i/n of n, such as 1/4, or null, not "):
            parse_arguments([*command, f"shard={text}"])


def test_decoders():
    for command in (EVAL, SEARCH):
        assert parse_arguments(command)["decoder"] == "neural"
        for name in ("neural", "lookup", "pairwise"):
            assert parse_arguments([*command, f"decoder={name}"])["decoder"] == name
    with pytest.raises(ConfigError, match="decoder must be one of neural, lookup, pairwise, not 'x'"):
        parse_arguments([*EVAL, "decoder=x"])


@pytest.mark.parametrize(
    "output, expected",
    [
        ("r/${model_args}-${M}x8.pt", "r/qinco2-S-16x8.pt"),
        ("${L}-${de}-${dh}-${K}-${ivf_K}", "2-128-256-256-1024"),
        ("${ds.trainset}/${ds.loop}/${epochs}", "100000/10000000/60"),
        ("${trainset}.pt", "t/deep1M.fvecs.pt"),
        ("${ trainset }.pt", "t/deep1M.fvecs.pt"),
        ("${db}-${lr}-${wd}-${cpu}-${task}", "deep1M-0.0008-0.1-false-train"),
        ("a${A}-b${B}.pt", "a16-b32.pt"),
        ("c${C}-b${B}", "c64-b32"),
        ("${oc.env:QINCO_FOLDER}/x", "f o/x"),
        ("${oc.env:QINCO_NONE,d}/${oc.env:QINCO_NONE,${M}}/${oc.env:QINCO_NONE,'a, b'}", "d/16/a, b"),
        ("${oc.env:QINCO_NONE, ${oc.env:QINCO_FOLDER}}", "f o"),
        ("\\${M}-${M}-\\\\${M}-}{$", "${M}-16-\\${M}-}{$"),
        ("${search.index_key}", "IVF1024_HNSW32,RQ16x8_Nqint8"),
    ],
)
def test_interpolation(output, expected, monkeypatch):
    monkeypatch.setenv("QINCO_FOLDER", "f o")
    monkeypatch.delenv("QINCO_NONE", raising=False)
    words = ["train", f"output={output}", "trainset=t/${db}.fvecs", "db=deep1M", "M=1_6", "ds.trainset=1e5", "lr=8e-4"]
    assert parse_arguments([*words, "ivf_K=1024"])["output"] == expected
    assert parse_arguments([*words[::-1], "ivf_K=1024"])["output"] == expected


def test_interpolated_values_are_parsed():
    settings = parse_arguments([*TRAIN, "dh=${de}", "de=${oc.env:QINCO_NONE,'32'}", "ds.trainset=${batch}", "C=${B}"])
    assert (settings["dh"], settings["de"], settings["ds.trainset"], settings["C"]) == (32, 32, None, 32)
    assert settings.given_keys == {"trainset", "output", "dh", "de", "ds.trainset", "C"}
    shown = parse_arguments(["info", "${oc.env:QINCO_NONE,a}", "b"])
    assert shown["file"] == ("a", "b")
    shared = parse_arguments(["encode", "model=m", "db=d", "shard=1/4", "output=${shard}-${nprobe}"])
    assert shared["output"] == "1/4-[4]"


@pytest.mark.parametrize(
    "words, expected",
    [
        (["output=${outputs}"], "output: ${outputs} names no key: did you mean output?"),
        (["output=${qqq}"], "output: ${qqq} names no key: give the name of a key, or write a plain ${ as \\${"),
        (["output=${}"], "output: ${} names no key"),
        (["output=${output}"], "output refers to itself: output -> output"),
        (["output=${model}", "model=x${tensorboard}", "tensorboard=${model}"],
         "model refers to itself: model -> tensorboard -> model"),
        (["output=x${M"], "output: a ${ is not closed by a }; a plain one is written \\${"),
        (["output=${oc.env:QINCO_NONE}"], "output: there is no environment variable 'QINCO_NONE': set it"),
        (["output=${oc.env:QINCO_NONE,null}"], "output: oc.env:QINCO_NONE,null has no value"),
        (["output=${now:%Y}"], "output: ${now:%Y} is unknown: there are ${key} and ${oc.env:NAME,default}"),
        (["output=${ivf_K}.npy"], "output: ivf_K has no value to stand for ${ivf_K}: give it one"),
        (["output=${lr}"], "output: lr has no value"),
        (["output=x", "epochs=${M}${wd}"], "epochs must be an integer of at least 1, not '80.1'"),
        (["output=x", "epochs=${ds.trainset}"], "epochs must be an integer of at least 1, not 'null'"),
        (["output=" + "${oc.env:QINCO_NONE," * 30 + "x" + "}" * 30], "output: more than 20 levels of ${ }"),
    ],
)  # fmt: skip
def test_wrong_interpolations(words, expected):
    with pytest.raises(ConfigError) as caught:
        parse_arguments(["train", "trainset=x", *words])
    assert expected in str(caught.value)


def test_a_task_that_makes_no_model_has_the_sizes_of_a_given_preset_only():
    with pytest.raises(ConfigError, match="M has no value"):
        parse_arguments(["eval", "db=d", "model=${M}.pt"])
    given = parse_arguments(["eval", "db=d", "model=${model_args}-${M}-${L}.pt", "model_args=qinco2-M"])
    assert given["model"] == "qinco2-M-8-4.pt"


def test_the_tables_agree():
    for task in TASKS.values():
        assert task.positional is None or task.positional in task.required
        for name in (name for names in task.required for name in names.split("|")):
            assert task.name in KEYS[name].tasks, (task.name, name)
    for key in KEYS.values():
        assert key.tasks and key.tasks <= set(TASKS), key.name
        assert key.kind != "choice" or key.default in (*key.choices, None)
        assert set(key.left_open) <= set(KEYS), key.name
