"""Whatever is typed gives settings or one clear error, and never more than is known of completion."""

from hypothesis import given
from hypothesis import strategies as st

from qinco.cli.completion import FILES, candidates
from qinco.cli.defaults import resolve
from qinco.cli.grammar import interpolate, parse_arguments, parse_value, to_text
from qinco.cli.keys import Settings
from qinco.cli.tasks import KEYS, TASKS
from qinco.errors import QincoError

PATH_KEYS = ("model", "trainset", "output", "tensorboard")
anything = st.text(max_size=30)
values = st.one_of(
    anything,
    st.integers().map(str),
    st.floats().map(str),
    st.lists(st.integers()).map(str),
    st.sampled_from(["null", "[4,10]", "1e9999", "1_000", "-0", "1e", "paper", "cuda:0", "1/4", "'8'"]),
    st.sampled_from(sorted(KEYS)).map("${{{}}}".format),
    st.text("${}:,\\\\ MK.output", max_size=20),
)
assignments = st.builds("{}={}".format, st.one_of(st.sampled_from(sorted(KEYS)), anything), values)
arguments = st.lists(
    st.one_of(assignments, anything, st.sampled_from(["--help", "-h", "--", "task=train"])), max_size=6
)


@given(st.sampled_from(PATH_KEYS), st.text(min_size=1))
def test_any_path_comes_back_as_it_was_typed(key, path):
    command = {"trainset": "x", "output": "y", key: path.replace("${", "\\${")}
    settings = parse_arguments(["train", *(f"{name}={value}" for name, value in command.items())])
    assert settings[key] == path


@given(st.integers(1, 2**63 - 1), st.floats(min_value=1e-300, allow_infinity=False))
def test_numbers_come_back(integer, number):
    for text in (f"{integer}", f"{integer:_}", f"+{integer}"):
        settings = parse_arguments(["train", "trainset=x", "output=y", f"epochs={text}", f"lr={number!r}"])
        assert (settings["epochs"], settings["lr"]) == (integer, number)


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
            assert settings.given_values.keys() == settings.given_keys


@given(st.sampled_from(sorted(TASKS)), arguments)
def test_the_configuration_names_every_key_of_the_task(task, words):
    try:
        settings = parse_arguments([task, *words], complete=False)
        resolved = resolve(TASKS[settings.task], settings.given_values)
    except QincoError as error:
        assert str(error)
        return
    assert list(resolved) == [key.name for key in TASKS[task].keys]
    for key, found in zip(TASKS[task].keys, resolved.values(), strict=True):
        assert found.source
        assert found.source != "command line" or key.name in settings.given_keys
        if found.value is not None and not key.is_plural:
            assert parse_value(key, to_text(key, found.value)) == found.value


@given(arguments, anything)
def test_completion_goes_on_with_what_is_typed(words, current):
    for typed in ([*words, current], ["train", *words, current], ["info", current]):
        for word in candidates(typed):
            assert word == FILES or word.startswith(typed[-1])


@given(st.text("${}:,\\M oc.env", max_size=40), st.text() | st.text("${}\\"))
def test_interpolation_is_text_or_a_clear_error(text, value):
    try:
        done = interpolate(text, lambda name: value, "output", null=None)
    except QincoError as error:
        assert str(error).startswith("output")
    else:
        assert done == text or "${" in text
        escaped = value.replace("${", "\\${")
        assert interpolate(escaped, lambda name: None, "output", null=None) == value


@given(st.sampled_from(sorted(KEYS)), values)
def test_any_value_gives_settings_or_an_error_that_names_the_key(key, value):
    try:
        settings = parse_arguments(["train", "trainset=x", "output=y", f"{key}={value}"])
    except QincoError as error:
        assert key in str(error) or (key == "model_args" and "preset" in str(error)) or "${" in value
    else:
        assert settings.given(key)
