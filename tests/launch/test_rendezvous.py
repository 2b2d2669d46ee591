"""The one store of a launcher, and why each attempt has a prefix of its own in it."""

import multiprocessing
import os
from multiprocessing.connection import Connection

import torch

from launch.rendezvous import Meeting, alone
from pretrain.engine.world import join_group
from tests.launch.driver import SERVER, listeners


def joined(meeting: Meeting, rank: int, attempt: int) -> Connection:
    """A process that joins a world of two; what is received of it is empty, or why it failed."""
    mine, its = multiprocessing.Pipe()
    SERVER.Process(target=join, args=(meeting.address, meeting.port, rank, attempt, its)).start()
    return mine


def join(address: str, port: int, rank: int, attempt: int, told: Connection) -> None:
    place = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": address, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update({"TORCHELASTIC_USE_AGENT_STORE": "True", "GLOO_SOCKET_IFNAME": "lo"})
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        join_group(torch.device("cpu"), attempt)
        told.send("")
    except RuntimeError as error:
        told.send(str(error))
    os._exit(0)  # as a killed rank, it leaves everything in the store


def test_the_store_listens_on_127_0_0_1_alone() -> None:
    meeting = alone()
    assert [place for place in listeners() if place[1] == meeting.port] == [("127.0.0.1", meeting.port)]


def test_ranks_join_again_under_a_new_number_and_meet_the_dead_under_the_old_one() -> None:
    meeting = alone()
    first = [joined(meeting, rank, attempt=1) for rank in (0, 1)]
    assert [rank.recv() for rank in first] == ["", ""]
    assert "refused" in joined(meeting, 0, attempt=1).recv(), "the control: a dead rank's address is in the store"
    second = [joined(meeting, rank, attempt=2) for rank in (0, 1)]
    assert [rank.recv() for rank in second] == ["", ""]
