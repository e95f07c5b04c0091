"""Whatever is typed gives settings or one clear error."""

from hypothesis import given
from hypothesis import strategies as st

from qinco.cli.keys import KEYS, TASKS
from qinco.cli.overrides import Settings, parse_arguments
from qinco.errors import QincoError

PATH_KEYS = ("model", "trainset", "output", "tensorboard")
anything = st.text(max_size=30)
values = st.one_of(
    anything,
    st.integers().map(str),
    st.floats().map(str),
    st.lists(st.integers()).map(str),
    st.sampled_from(["null", "true", "[4,10]", "1e9999", "1_000", "-0", "1e", "paper", "cuda:0"]),
)
assignments = st.builds("{}={}".format, st.one_of(st.sampled_from(sorted(KEYS)), anything), values)
arguments = st.lists(
    st.one_of(assignments, anything, st.sampled_from(["--help", "-h", "--", "task=train"])), max_size=6
)


@given(st.sampled_from(PATH_KEYS), st.text(min_size=1))
def test_any_path_comes_back_as_it_was_typed(key, path):
    command = {"trainset": "x", "output": "y", key: path}
    settings = parse_arguments(["train", *(f"{name}={value}" for name, value in command.items())])
    assert settings[key] == path


@given(st.integers(1, 2**63 - 1))
def test_integers_come_back(number):
    for text in (f"{number}", f"{number:_}", f"+{number}"):
        assert parse_arguments(["train", "trainset=x", "output=y", f"epochs={text}"])["epochs"] == number


@given(st.floats(min_value=1e-300, allow_infinity=False))
def test_numbers_come_back(number):
    assert parse_arguments(["train", "trainset=x", "output=y", f"lr={number!r}"])["lr"] == number


@given(st.sampled_from(sorted(TASKS)), arguments)
def test_random_arguments_give_settings_or_a_clear_error(task, words):
    for command in ([task, *words], words):
        try:
            settings = parse_arguments(command)
        except QincoError as error:
            assert str(error)
        else:
            assert isinstance(settings, Settings)
            assert settings.values.keys() == KEYS.keys()


@given(st.sampled_from(sorted(KEYS)), values)
def test_any_value_gives_settings_or_an_error_that_names_the_key(key, value):
    try:
        settings = parse_arguments(["train", "trainset=x", "output=y", f"{key}={value}"])
    except QincoError as error:
        assert key in str(error) or (key == "model_args" and "preset" in str(error))
    else:
        assert settings.given(key)
