"""A search whose trials are run by workers, here threads: the chief and the channel are real."""

import contextlib
import dataclasses
import http.server
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading

import keras_tuner as kt
import pytest
from keras_tuner.engine.trial import Trial as Message

from keras_mas.errors import UsageError
from keras_mas.training.search import channel, chief, worker
from keras_mas.training.search import trials as trials_module
from keras_mas.training.search.chief import with_workers
from keras_mas.training.search.plan import Observer, Plan
from keras_mas.training.search.proposals import Proposals
from keras_mas.training.search.search import search
from keras_mas.training.search.space import SearchSpace
from keras_mas.training.search.trial import FAILED
from keras_mas.training.search.trials import Trials
from keras_mas.training.search.worker import ChiefError, join
from keras_mas.training.search.workers import Workers, address, is_of_this_machine, worker_name

ANY_PORT = "127.0.0.1:0"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No worker waits for long, and threads are workers of different names."""
    monkeypatch.setattr(channel, "PULSE", 0.02)
    for name in ("_FIRST", "_LOST_HERE"):
        monkeypatch.setattr(worker, name, 0.3)
    monkeypatch.setattr(worker, "_PAUSE", 0.02)
    monkeypatch.setattr(chief, "_LOOK", 0.01)
    monkeypatch.setattr(worker, "worker_name", lambda: f"thread:{threading.get_ident()}")


def nobody(address, environment):
    raise AssertionError("there are no workers of this machine")


class Starting(Observer):
    """Starts workers when the chief says where they join; notes what is said."""

    def __init__(self, *workers):
        self.workers, self.lines, self.threads = workers, [], []
        self.ended, self.errors = [], queue.SimpleQueue()

    def said(self, text):
        self.lines.append(text)
        before, is_where, where = text.partition("--join ")
        for work in self.workers if is_where else ():
            thread = threading.Thread(target=self._work, args=[work, where])
            self.threads.append(thread)
            thread.start()

    def trial_ended(self, trial):
        self.ended.append(trial)

    def _work(self, work, where):
        try:
            work(where)
        except Exception as error:
            self.errors.put(error)


def searched_by(stream, settings, space, folder, *workers):
    """Search with workers; return what was found, and who started them."""
    started = Starting(*workers)
    try:
        way = with_workers(nobody, 0, ANY_PORT)
        found = search(stream, settings, space, folder, observer=started, way=way)
    finally:
        for thread in started.threads:
            thread.join()
    return found, started


@pytest.fixture
def joining(stream, settings):
    """Make a worker of the same search in a folder."""

    def of(space, folder, settings=settings):
        return lambda where: join(stream, settings, space, folder, where, Observer())

    return of


def space(trials=6, tuner="random", **options):
    return SearchSpace(tuner, trials, 1e-3, 50.0, **{"complete_trials": True} | options)


def told(found):
    return sorted((t.name, t.state, t.reason, str(t.results)) for t in found.trials)


@pytest.mark.parametrize("tuner", ["random", "grid"])
def test_two_workers_run_the_trials_of_a_single_process(
    trained, stream, settings, tmp_path, joining, tuner
):
    asked = space(11, tuner)
    alone = search(stream, settings, asked, tmp_path / "alone")
    of_alone = sorted(trained)
    trained.clear()
    both = [joining(asked, tmp_path / "both")] * 2
    found, started = searched_by(stream, settings, asked, tmp_path / "both", *both)
    assert sorted(trained) == of_alone  # none lost, none twice
    assert told(found) == told(alone)
    assert started.errors.empty()
    assert all(trial.is_new and trial.seconds > 0 for trial in found.trials)
    trained.clear()
    search(stream, settings, asked, tmp_path / "both")
    assert trained == []


def test_trials_are_run_side_by_side(trained, stream, settings, tmp_path, joining, monkeypatch):
    barrier, learn = threading.Barrier(2, timeout=20), trials_module.train

    def train(*args, **options):
        barrier.wait()  # until another worker is at a trial too
        return learn(*args, **options)

    monkeypatch.setattr(trials_module, "train", train)
    asked = SearchSpace("grid", 3, 5.0, 50.0, complete_trials=True)  # and λ = 0
    found, _ = searched_by(stream, settings, asked, tmp_path, *[joining(asked, tmp_path)] * 2)
    assert [trial.state for trial in found.trials] == ["completed"] * 4


def test_a_worker_stops_a_trial_that_cannot_win_against_those_of_others(
    trained, stream, settings, tmp_path, joining
):
    asked = SearchSpace("grid", 3, 5.0, 50.0)
    alone = search(stream, settings, asked, tmp_path / "alone")
    here = joining(asked, tmp_path / "one")
    found, _ = searched_by(stream, settings, asked, tmp_path / "one", here)
    assert told(found) == told(alone)
    assert {t.state for t in found.trials} == {"completed", "stopped"}


def test_values_arrive_in_all_their_digits(trained, stream, settings, tmp_path, joining):
    asked = SearchSpace("random", 1, 1 / 3, 0.33334)
    plain = dataclasses.replace(settings, strength=1 / 3)  # no number of 32 bits
    here = joining(asked, tmp_path, plain)
    searched_by(stream, plain, asked, tmp_path, here)
    assert trained == [(0.0, 0), (0.3333333333333333, 0)] or trained[1][0] == 0.3333


def failing_at(monkeypatch, strengths, error):
    learn = trials_module.train

    def train(stream, settings, directory, **options):
        if settings.strength in strengths:
            raise error
        return learn(stream, settings, directory, **options)

    monkeypatch.setattr(trials_module, "train", train)


def test_a_crash_in_a_worker_is_named_and_the_search_goes_on(
    trained, stream, settings, tmp_path, joining, monkeypatch
):
    failing_at(monkeypatch, [1.0], ValueError("shapes\ndiffer"))
    asked = space(3)
    found, started = searched_by(stream, settings, asked, tmp_path, joining(asked, tmp_path))
    [crashed] = [trial for trial in found.trials if trial.state == FAILED]
    assert (crashed.strength, crashed.reason) == (1.0, "crashed: ValueError: shapes differ")
    assert len(found.trials) == 4 and started.errors.empty()


def test_an_error_that_would_come_again_ends_the_search(
    trained, stream, settings, tmp_path, joining, monkeypatch
):
    failing_at(monkeypatch, [1.0], OSError(28, "No space left on device"))
    asked = space(3)
    with pytest.raises(RuntimeError, match="No space left on device"):
        searched_by(stream, settings, asked, tmp_path, joining(asked, tmp_path))
    assert trained == [(0.0, 0)]


class Lost:
    """A worker that takes a trial and is never heard of again, until it asks whether it has it."""

    def __init__(self):
        self.has_taken, self.name = threading.Event(), None

    def __call__(self, where):
        with contextlib.closing(worker._Chief(where, Observer())) as its_chief:
            its_chief.search()
            self.name = its_chief.next().trial_id
            self.has_taken.set()

    def has_it_still(self, where):
        with contextlib.closing(worker._Chief(where, Observer())) as its_chief:
            return its_chief.is_ours(self.name, 1)


def test_the_trial_of_a_worker_that_falls_silent_is_taken_up_by_another(
    trained, stream, settings, tmp_path, joining, monkeypatch
):
    monkeypatch.setattr(channel, "SILENCE", 0.4)
    asked, lost, still = space(3), Lost(), []

    def other(where):
        lost.has_taken.wait(20)
        joining(asked, tmp_path)(where)

    def late(where):
        lost.has_taken.wait(20)
        while not trained:
            pass
        still.append(lost.has_it_still(where))

    found, started = searched_by(stream, settings, asked, tmp_path, lost, other, late)
    assert len(found.trials) == len(trained) == 4
    [line] = [line for line in started.lines if "was not heard of for" in line]
    assert line.endswith("within trial strength-0.0, which is taken up again")
    # λ = 0 came back last, when the others were under way or had ended; by then it was not its own.
    assert still in ([False], [True])


def plan_of(stream, settings, folder, **options):
    asked = space(2, **options)
    trials = Trials(stream, settings, asked, folder)
    proposals = Proposals(asked, settings, folder / "proposals.json")
    return Plan(trials, proposals, {"strength": 0.0}, Observer(), 9)


def test_a_trial_that_takes_two_workers_with_it_has_failed(trained, stream, settings, tmp_path):
    plan = plan_of(stream, settings, tmp_path)
    taken = [plan.next(name).name for name in "abc"]
    assert taken == ["strength-0.0", "strength-1.0", plan.next("c").name]
    assert plan.next("b").name == "strength-1.0"  # asked again, it has the same
    plan.given_back("b", "worker b was ended by signal 9")
    assert plan.next("d").name == "strength-1.0"
    plan.given_back("d", "worker d was ended by signal 9")
    [failed] = plan.ended
    assert failed.reason == (
        "crashed: 2 workers ended within it. The last one: worker d was ended by signal 9"
    )
    assert plan.next("e") is None and not plan.is_finished
    for name in "ac":
        asked = plan.next(name)
        plan.finished(asked.number, plan.trials.run(asked.values, asked.ended))
    assert plan.is_finished and len(plan.ended) == 3


def test_what_ended_too_late_is_not_counted_twice(trained, stream, settings, tmp_path):
    plan = plan_of(stream, settings, tmp_path)
    first = plan.next("a")
    plan.given_back("a", "silent")
    again = plan.next("b")
    assert again.name == first.name and again.number != first.number
    trial = plan.trials.run(first.values)
    plan.finished(first.number, trial)  # by the one that was given up
    assert plan.ended == [] and plan.under_way(first.number) is None
    plan.finished(again.number, trial)
    assert plan.ended == [trial]


def test_a_trial_that_an_earlier_chief_gave_is_not_taken_for_one_of_the_same_number(
    trained, stream, settings, tmp_path
):
    plan = plan_of(stream, settings, tmp_path)
    earlier, later = (chief._Oracle(plan, plan.trials) for _ in range(2))
    given = later.create_trial("a").trial_id
    of_earlier = earlier._name(0)
    assert later.update_trial(given, {}).status == channel.RUNNING
    assert later.update_trial(of_earlier, {}).status == channel.STOPPED
    later.end_trial(channel.message(of_earlier, channel.COMPLETED, learned=3, seconds=1.0))
    assert plan.under_way(0) is not None and plan.ended == [] and later.error is None


def test_the_same_setting_under_way_is_not_given_twice(trained, stream, settings, tmp_path):
    asked = SearchSpace("grid", 6, 0.5, 5.0, vary="method=finetune,mas")
    trials = Trials(stream, settings, asked, tmp_path)
    plan = Plan(
        trials, Proposals(asked, settings, tmp_path / "proposals.json"), None, Observer(), 9
    )
    names = [plan.next(str(number)).name for number in range(4)]
    assert names[0] == "method-finetune"  # which λ makes no difference to
    assert len(set(names)) == 4 and plan.next("fifth") is None


# What is refused, and what is said when chief or worker is gone.


def test_a_worker_of_another_search_is_refused(trained, stream, settings, tmp_path, joining):
    asked = space(1)
    stranger = joining(space(1, tuner="bayesian"), tmp_path)
    elsewhere = joining(asked, tmp_path / "elsewhere")
    here = joining(asked, tmp_path)
    found, started = searched_by(stream, settings, asked, tmp_path, stranger, elsewhere, here)
    texts = sorted(str(started.errors.get_nowait()) for _ in range(2))
    assert "Expected the folder of the search, 'insects-mas-" in texts[0]
    assert "file system that its machines share" in texts[0]
    assert "Expected the options of the search at 127.0.0.1:" in texts[1]
    assert len(found.trials) == 2


def test_results_that_do_not_arrive_end_the_search(
    trained, stream, settings, tmp_path, joining, monkeypatch
):
    monkeypatch.setattr(chief, "_PASSED_ON", 0.2)
    asked = space(1)

    def copied(where):  # a folder that looks the same, and is not shared
        shutil.copytree(tmp_path / "here", tmp_path / "copy")
        joining(asked, tmp_path / "copy")(where)

    with pytest.raises(UsageError, match="Received: nothing of 'strength-0.0' there. Have all"):
        searched_by(stream, settings, asked, tmp_path / "here", copied)


def test_a_chief_that_cannot_be_reached(stream, settings, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        waiting = Starting()
        with pytest.raises(ChiefError, match=f"Nothing has answered at {where}"):
            join(stream, settings, space(), tmp_path, where, waiting)
    assert waiting.lines == [f"waiting for the search at {where}"]
    assert not list(tmp_path.iterdir())


def test_another_program_at_the_address_is_named_at_once(stream, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "_FIRST", 20.0)
    monkeypatch.setattr(http.server.BaseHTTPRequestHandler, "log_message", lambda *args: None)
    page = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=page.serve_forever, daemon=True).start()
    try:
        where = f"127.0.0.1:{page.server_port}"
        with pytest.raises(ChiefError, match=f"What answers at {where} is no search of keras_mas"):
            join(stream, settings, space(), tmp_path, where, Observer())
    finally:
        page.shutdown()
        page.server_close()


def test_a_trial_of_another_chief_is_named():
    given = Message(kt.HyperParameters(), trial_id="0", status="RUNNING")
    with (
        contextlib.closing(worker._Chief("127.0.0.1:1", Observer())) as other,
        pytest.raises(ChiefError, match="What answers at 127.0.0.1:1 is no search"),
    ):
        other.content_of(given)


def test_a_worker_ends_its_trial_when_the_chief_is_gone(
    trained, stream, settings, tmp_path, joining, monkeypatch
):
    has_begun = threading.Event()

    def train(stream, settings, directory, *, listeners, **options):
        [contact] = [each for each in listeners if each.callbacks]
        has_begun.set()
        for _ in iter(lambda: contact.error, "never"):
            contact.callbacks[0].on_train_batch_end(0)

    monkeypatch.setattr(trials_module, "train", train)

    class Ending(Starting):
        def trial_started(self, name):
            threading.Thread(target=self.end).start()
            return ()

        def end(self):
            has_begun.wait(20)
            self.oracle.error = KeyboardInterrupt()

    oracle = chief._Oracle
    ending = Ending(joining(space(), tmp_path))

    def noted(*args):
        ending.oracle = oracle(*args)
        return ending.oracle

    monkeypatch.setattr(chief, "_Oracle", noted)
    with pytest.raises(KeyboardInterrupt):
        way = with_workers(nobody, 0, ANY_PORT)
        search(stream, settings, space(), tmp_path, observer=ending, way=way)
    for thread in ending.threads:
        thread.join()
    with pytest.raises(ChiefError, match="does not answer any more. What has been learned stays"):
        raise ending.errors.get_nowait()


def test_a_port_that_is_taken_is_refused_and_not_shared(trained, stream, settings, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        way = with_workers(nobody, 0, where)
        with pytest.raises(UsageError, match=f"Received: {where}. Take another port"):
            search(stream, settings, space(), tmp_path, way=way)

    def twice(address):
        with pytest.raises(UsageError, match="with a port that is free"):
            way = with_workers(nobody, 0, address)
            search(stream, settings, space(), tmp_path / "second", way=way)
        join(stream, settings, space(1), tmp_path, address, Observer())

    found, started = searched_by(stream, settings, space(1), tmp_path, twice)
    assert started.errors.empty()


def test_an_address_of_all_networks_is_said_to_be_open(trained, stream, settings, tmp_path):
    def worker(where):
        port = where.rpartition(":")[2]
        join(stream, settings, space(1), tmp_path, f"127.0.0.1:{port}", Observer())

    started = Starting(worker)
    way = with_workers(nobody, 0, "0.0.0.0:0")
    search(stream, settings, space(1), tmp_path, observer=started, way=way)
    assert any("has no password and nothing is encrypted" in line for line in started.lines)


def process(code):
    """Return a launch of processes that run Python code."""

    def launch(address, environment):
        words = [sys.executable, "-c", code]
        return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)

    return launch


def test_workers_that_do_not_start_end_the_search(trained, stream, settings, tmp_path):
    way = with_workers(process("import sys; sys.exit('no such module')"), 2)
    with pytest.raises(RuntimeError, match="exit code 1 before its first trial. no such module"):
        search(stream, settings, space(), tmp_path, way=way)


def test_workers_that_have_started_end_where_another_cannot(trained, stream, settings, tmp_path):
    started = []
    sleeping = process("import time; time.sleep(60)")

    def launch(address, environment):
        if started:
            raise BlockingIOError("no process can be made")
        started.append(sleeping(address, environment))
        return started[0]

    with pytest.raises(BlockingIOError):
        search(stream, settings, space(), tmp_path, way=with_workers(launch, 2))
    [first] = started
    assert first.poll() == -signal.SIGTERM


def test_no_more_workers_start_than_there_are_trials(trained, stream, settings, tmp_path):
    started = []
    launch = process("import sys; sys.exit('no such module')")

    def counting(address, environment):
        started.append(environment["KERAS_MAS_WORKER"])
        return launch(address, environment)

    with pytest.raises(RuntimeError, match="before its first trial"):
        # λ = 0 is a trial besides.
        search(stream, settings, space(2), tmp_path, way=with_workers(counting, 1000))
    assert started == ["1", "2", "3"]


def test_more_workers_than_the_cores_have_use_for_are_refused(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    Workers(8).check_cores()
    with pytest.raises(UsageError, match="at most 8, 4 for each core .* Received: 9. Each is"):
        Workers(9).check_cores()


def test_a_worker_that_a_chief_started_does_not_wait_for_it_to_begin(monkeypatch):
    monkeypatch.setattr(worker, "_FIRST", 600.0)
    monkeypatch.setattr(worker, "_PARENT", 0.05)
    monkeypatch.setenv("KERAS_MAS_WORKER", "7")
    with (
        contextlib.closing(worker._Chief("127.0.0.1:1", Observer())) as away,
        pytest.raises(ChiefError, match=r"Nothing has answered at 127.0.0.1:1 for 0 s"),
    ):
        away.search()


def test_cores_are_divided(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    for name in ("TF_NUM_INTEROP_THREADS", "TF_NUM_INTRAOP_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    names = ("TF_NUM_INTEROP_THREADS", "TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS")
    assert [chief._environment(3)[name] for name in names] == ["2", "2", "3"]  # 3 was asked for
    assert [chief._environment(16)[name] for name in names] == ["1", "1", "3"]


def test_names(monkeypatch):
    monkeypatch.setenv("KERAS_MAS_WORKER", "7")
    assert worker_name() == "7"
    monkeypatch.delenv("KERAS_MAS_WORKER")
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "7")  # of a keras-tuner in the same environment
    assert worker_name() != worker_name()  # as two containers with one process each


def test_addresses():
    assert address("10.0.0.5:7007") == "10.0.0.5:7007"
    for wrong in ("7007", ":7007", "host", "host:", "host:99999", "host:x"):
        with pytest.raises(Exception, match="expected HOST:PORT"):
            address(wrong)
    own = ("127.0.0.1:1", "localhost:1", "[::1]:1")
    assert all(map(is_of_this_machine, own))
    assert not any(map(is_of_this_machine, ("0.0.0.0:1", "10.0.0.5:1", "[::]:1", "node7:1")))


def test_either_a_search_or_a_worker():
    with pytest.raises(UsageError, match="Expected --join alone"):
        Workers(join="host:1", listen="host:2")
    with pytest.raises(UsageError, match="Expected --listen HOST:PORT with --workers 0"):
        Workers(workers=0)
    assert not Workers().are_processes
    assert Workers(2).are_processes and Workers(1, "host:1").are_processes
