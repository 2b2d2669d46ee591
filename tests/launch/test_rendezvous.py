"""The one store of a launcher, and why each attempt has a prefix of its own in it."""

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection

import torch

from launch.rendezvous import Meeting, alone
from pretrain.engine.world import join_group
from tests.launch.driver import PATIENCE_S, SERVER, listeners


class Rank:
    """A process that joins a world of two, and ends as a killed one does: everything that it told the store stays."""

    def __init__(self, meeting: Meeting, rank: int, attempt: int):
        self.told, its = multiprocessing.Pipe()
        arguments = (meeting.address, meeting.port, rank, attempt, its)
        self._process = SERVER.Process(target=join, args=arguments, daemon=True)
        self._process.start()

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def join_and_end(meeting: Meeting, attempt: int) -> list[str]:
    """Two ranks join and end; of each nothing, or why it failed."""
    ranks = [Rank(meeting, rank, attempt) for rank in (0, 1)]
    told = [rank.told.recv() for rank in ranks]
    for rank in ranks:
        rank.end()
    return told


def join(address: str, port: int, rank: int, attempt: int, told: Connection) -> None:
    place = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": address, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update({"TORCHELASTIC_USE_AGENT_STORE": "True", "GLOO_SOCKET_IFNAME": "lo"})
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    signal.alarm(int(PATIENCE_S))
    try:
        join_group(torch.device("cpu"), attempt)
        told.send("")
    except RuntimeError as error:
        told.send(str(error))
    signal.pause()


def test_the_store_listens_on_127_0_0_1_alone() -> None:
    meeting = alone()
    assert [place for place in listeners() if place[1] == meeting.port] == [("127.0.0.1", meeting.port)]


def test_ranks_join_again_under_a_new_number_and_meet_the_dead_under_the_old_one() -> None:
    meeting = alone()
    assert join_and_end(meeting, attempt=1) == ["", ""]
    # The control: gloo finds the dead rank's address and is refused, or waits for it to connect, as their ports compare.
    again = Rank(meeting, 0, attempt=1)
    assert not again.told.poll(2.0) or "refused" in again.told.recv()
    again.end()
    assert join_and_end(meeting, attempt=2) == ["", ""]
