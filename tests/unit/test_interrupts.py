"""Ctrl-C and SIGTERM: held back in the middle of a change, and heard within compiled calls."""

import os
import signal
import threading

import pytest

from qinco.interrupts import StoppedTwice, handling, held_back, import_whole


def test_an_interrupt_is_held_back_until_the_block_ends():
    done, before = [], signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), held_back():
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    assert done and signal.getsignal(signal.SIGINT) is before


def test_a_second_interrupt_is_not_held_back():
    done = []
    with pytest.raises(StoppedTwice), held_back(), held_back():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    assert not done


def test_sigterm_is_held_back_for_its_own_handler():
    with handling(signal.default_int_handler, signal.SIGTERM), pytest.raises(KeyboardInterrupt), held_back():
        signal.raise_signal(signal.SIGTERM)


def test_signals_that_a_process_ignores_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held_back():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_leave_signals_alone():
    def work():
        with held_back(), handling(print, signal.SIGTERM):
            found.append(signal.getsignal(signal.SIGINT))

    found, thread = [], threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]


def test_an_import_goes_on_when_it_is_interrupted(tmp_path, monkeypatch, no_thread_is_left):
    name = "imported_in_pieces"
    (tmp_path / f"{name}.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\n"
                                         "time.sleep(0.1)\nwhole = True\n")  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        import_whole(name)
    assert __import__(name).whole
