"""The crew: threads that write a model's weights."""

import threading
import time

import pytest

from onnx_bnfold.storage import thread_pool


@pytest.fixture(params=[1, 4])
def processors(request, monkeypatch):
    monkeypatch.setattr(thread_pool, "available_processors", lambda: request.param)
    return request.param


def test_only_processors_that_are_ours_count(monkeypatch):
    monkeypatch.setattr(thread_pool.os, "sched_getaffinity", lambda pid: {2, 5, 7}, raising=False)
    monkeypatch.setattr(thread_pool.os, "cpu_count", lambda: 8)
    assert thread_pool.available_processors() == 3


@pytest.mark.parametrize(("counted", "threads"), [(8, 8), (None, 1)])
def test_a_system_that_does_not_say_which_processors_are_ours(counted, threads, monkeypatch):
    monkeypatch.delattr(thread_pool.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(thread_pool.os, "cpu_count", lambda: counted)
    assert thread_pool.available_processors() == threads


def test_every_job_is_done_once(processors):
    done = []
    thread_pool.run([lambda i=i: done.append(i) for i in range(100)])
    assert sorted(done) == list(range(100))
    thread_pool.run([])


def test_as_many_threads_as_processors_and_no_more(processors):
    together = threading.Barrier(processors)
    thread_pool.run([lambda: together.wait(10)] * processors)
    seen = set()
    thread_pool.run([lambda: (time.sleep(0.01), seen.add(threading.get_ident()))] * 20)
    assert len(seen) <= processors


def test_the_number_of_threads_can_be_given(processors):
    together = threading.Barrier(3)
    thread_pool.run([lambda: together.wait(10)] * 3, 3)
    seen = set()
    thread_pool.run([lambda: (time.sleep(0.01), seen.add(threading.get_ident()))] * 20, 1)
    assert seen == {threading.get_ident()}


def test_the_first_failure_is_raised_and_no_further_job_begins(processors):
    done = []

    def fail(name, seconds):
        time.sleep(seconds)
        raise ValueError(name)

    def succeed():
        time.sleep(0.01)
        done.append(1)

    jobs = [lambda: fail("first", 0.2), lambda: fail("second", 0)]
    with pytest.raises(ValueError, match="first"):
        thread_pool.run([*jobs, *[succeed] * 1000])
    assert len(done) < 500
    count = len(done)
    time.sleep(0.05)
    assert len(done) == count


def test_an_interrupt_waits_for_the_threads_that_write(monkeypatch):
    monkeypatch.setattr(thread_pool, "available_processors", lambda: 2)
    main, done, begun = threading.main_thread(), [], threading.Event()

    def job():
        if threading.current_thread() is main:
            begun.wait(10)
            raise KeyboardInterrupt
        begun.set()
        time.sleep(0.2)
        done.append(1)

    with pytest.raises(KeyboardInterrupt):
        thread_pool.run([job] * 50)
    assert done == [1]


def test_after_an_interrupt_between_jobs_no_other_begins(monkeypatch):
    start, begun, done = threading.Thread.start, [], []

    def interrupted(thread):
        if begun:
            raise KeyboardInterrupt
        begun.append(thread)
        start(thread)

    monkeypatch.setattr(thread_pool.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        thread_pool.run([lambda: (time.sleep(0.02), done.append(1))] * 20, threads=3)
    assert len(done) < 20


def test_an_interrupt_goes_before_an_earlier_error(monkeypatch):
    monkeypatch.setattr(thread_pool, "available_processors", lambda: 2)
    main, begun = threading.main_thread(), threading.Barrier(2)

    def job():
        begun.wait(10)
        if threading.current_thread() is main:
            raise KeyboardInterrupt
        raise ValueError

    for _ in range(20):
        with pytest.raises(KeyboardInterrupt):
            thread_pool.run([job] * 2)


def test_fewer_threads_do_where_the_system_has_no_more(monkeypatch):
    start, begun = threading.Thread.start, []

    def refuse(thread):
        if begun:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start(thread)

    monkeypatch.setattr(thread_pool.Thread, "start", refuse)
    done = []
    thread_pool.run([lambda i=i: done.append(i) for i in range(50)], 4)
    assert sorted(done) == list(range(50))
    assert not begun[0].is_alive()
