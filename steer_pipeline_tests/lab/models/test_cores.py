"""Claims about work on several cores: results in order, one thread each inside, everything as before afterwards."""

import threading

import pytest
import torch

from steer_pipeline.lab.models.cores import one_core_each, torch_threads

CPU = torch.device("cpu")


@pytest.fixture
def three_threads():
    with torch_threads(3):
        yield


def test_pieces_run_side_by_side_and_come_back_in_order(three_threads):
    together = threading.Barrier(3, timeout=20)  # passes only if three pieces run at the same time

    def work(i):
        together.wait()
        return i, torch.get_num_threads()

    with one_core_each(CPU, 6) as cores:
        assert cores.map(work, range(6)) == [(i, 1) for i in range(6)]
    assert torch.get_num_threads() == 3


def test_fewer_pieces_than_cores_have_all_cores_each(three_threads):
    with one_core_each(CPU, 2) as cores:
        found = cores.map(lambda i: (i, torch.get_num_threads(), threading.get_ident()), range(2))
    assert found == [(i, 3, threading.get_ident()) for i in range(2)]


def test_a_failing_piece_fails_the_whole_and_leaves_the_threads_as_they_were(three_threads):
    with pytest.raises(ZeroDivisionError), one_core_each(CPU, 3) as cores:
        cores.map(lambda i: 1 // i, [1, 0, 2])
    assert torch.get_num_threads() == 3
