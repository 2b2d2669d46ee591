"""What a job does after each way in which a stage can end."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.slurm_job import (
    FIRST_PORT,
    PORTS_OF_A_JOB,
    JobFacts,
    Outcome,
    at_start,
    decide,
    main,
    outcome_of,
    port_of,
    rendezvous,
    to_exclude,
)
from pretrain.files import append_json_line, read_json_lines

FACTS = JobFacts(job=7, restart=1, nodes=("n1", "n2"), up=("n1", "n2", "n3", "n4"))
MINE = {"generation": 3, "slurm": {"job": 7, "restart": 1}}
EARLIER = {"generation": 2, "slurm": {"job": 7, "restart": 0}}


def ended(generation: int, exit_code: int, node: str | None = None) -> dict[str, Any]:
    return {
        "kind": "launch_ended",
        "generation": generation,
        "exit_code": exit_code,
        "message": "told\nand how to go on",
        "rank": 1,
        "node": node,
    }


def fault(faults: int, checkpoint: int | None, job: int = 7, chain: str | None = None) -> dict[str, Any]:
    return {"kind": "job", "faults": faults, "checkpoint": checkpoint, "job": job, "chain": chain}


def test_neighbours_and_restarts_have_ports_of_their_own_below_the_ephemeral_ones() -> None:
    starts = [port_of(job, restart) for job in range(100, 130) for restart in range(8)]
    assert len(set(starts)) == len(starts)
    assert all(FIRST_PORT <= port <= 30_000 - PORTS_OF_A_JOB for port in starts)
    assert {(port - FIRST_PORT) % PORTS_OF_A_JOB for port in starts} == {0}
    assert rendezvous(FACTS) == f"n1:{port_of(7, 1)}"


@pytest.mark.parametrize(
    ("code", "action", "exit_code", "over"),
    [(0, "stop", 0, True), (2, "stop", 2, True), (3, "stop", 3, True), (4, "stop", 4, True), (5, "stop", 5, True)]
    + [(130, "stop", 130, True)]
    + [(code, "requeue", 70, False) for code in (70, 1, 137, 143, 139, 127, 213)],
)
def test_each_exit_code_has_its_action(code: int, action: str, exit_code: int, over: bool) -> None:
    decision = decide(outcome_of(code, False, FACTS, [], []), FACTS, [], None)
    assert (decision.action, decision.exit_code, decision.over) == (action, exit_code, over)


@pytest.mark.parametrize(("code", "said"), [(143, 75), (137, 0), (70, 2), (0, 70)])
def test_the_launcher_of_node_0_is_believed_before_srun(code: int, said: int) -> None:
    outcome = outcome_of(code, True, FACTS, [ended(2, 5), ended(3, said)], [EARLIER, MINE])
    assert outcome.code == (75 if said == 0 else said), "trained, and stopped within what follows: that is done again"


def test_what_an_earlier_start_noted_is_left_aside() -> None:
    assert outcome_of(143, False, FACTS, [ended(2, 2)], [EARLIER]).code == 143


def test_launchers_that_were_ended_because_another_failed_before_ranks_started_are_no_preemption() -> None:
    told, faults = outcome_of(75, False, FACTS, [], []), [fault(3, None)]
    assert decide(told, FACTS, [], None).faults == 1
    assert (decide(told, FACTS, faults, None).action, decide(told, FACTS, faults, None).exit_code) == ("stop", 70)
    assert decide(outcome_of(75, True, FACTS, [], []), FACTS, faults, None).exit_code == 75
    assert decide(outcome_of(143, False, FACTS, [ended(3, 75)], [MINE]), FACTS, faults, None).exit_code == 75


def test_a_launch_that_was_asked_to_stop_while_it_started_is_preempted_and_no_fault() -> None:
    assert outcome_of(138, True, FACTS, [], []).code == 75
    assert outcome_of(2, True, FACTS, [], []).code == 2


def test_a_failure_of_what_follows_training_is_not_trained_again() -> None:
    decision = decide(outcome_of(3, False, FACTS, [ended(3, 0)], [MINE]), FACTS, [], 100)
    assert (decision.action, decision.exit_code, decision.over) == ("stop", 3, True)
    decision = decide(outcome_of(70, False, FACTS, [ended(3, 0)], [MINE]), FACTS, [], 100)
    assert (decision.action, decision.exit_code, decision.over) == ("stop", 70, True)


def test_faults_are_counted_until_a_new_checkpoint_and_borne_up_to_the_limit() -> None:
    broken = Outcome(70, "rank 1 died")
    assert decide(broken, FACTS, [], None).faults == 1
    third = decide(broken, FACTS, [fault(1, None), fault(2, 40)], 40)
    assert (third.action, third.faults) == ("requeue", 3)
    assert decide(broken, FACTS, [fault(3, 40)], 60).faults == 1
    last = decide(broken, FACTS, [fault(3, 40), {"kind": "job", "faults": 0, "checkpoint": 40}], 40)
    assert (last.action, last.exit_code, last.over) == ("stop", 70, True)
    assert "rank 1 died" in last.message
    assert decide(broken, FACTS, [fault(4, 40, job=6)], 40).faults == 1, "submitted anew"
    of_chain = replace(FACTS, chain="c")
    assert decide(broken, of_chain, [fault(2, 40, job=6, chain="c")], 40).faults == 3
    assert decide(broken, of_chain, [fault(2, 40, job=6, chain="other")], 40).faults == 1


def test_preemptions_are_without_limit() -> None:
    assert decide(Outcome(75, "saved"), FACTS, [fault(3, 40)], 40).action == "requeue"


@pytest.mark.parametrize("policy", ["chain", "never"])
@pytest.mark.parametrize("code", [75, 70])
def test_a_job_that_may_not_be_queued_again_ends_with_the_code_that_says_why(policy: Any, code: int) -> None:
    facts = JobFacts(job=7, restart=0, nodes=("n1",), policy=policy, chain="c")
    decision = decide(Outcome(code, "told"), facts, [], None)
    assert (decision.action, decision.exit_code, decision.over) == ("leave", code, False)


def test_the_node_at_fault_is_excluded_whatever_domain_it_is_told_with() -> None:
    outcome = outcome_of(143, False, FACTS, [ended(3, 70, "n2.cluster.local")], [MINE])
    decision = decide(outcome, FACTS, [], None)
    assert decision.exclude == ("n2",)
    assert "without n2" in decision.message
    assert to_exclude(["elsewhere"], FACTS) == ((), "")


def test_never_so_many_are_excluded_that_the_job_cannot_run() -> None:
    facts = JobFacts(job=7, restart=1, nodes=("n1", "n2"), excluded=("n3",), up=("n1", "n2", "n3", "n4"))
    assert to_exclude(["n2"], facts) == (("n2",), "")
    excluded, why = to_exclude(["n1", "n2"], facts)
    assert excluded == ()
    assert "1 nodes left" in why


def test_a_chain_ends_at_once_where_a_job_of_it_came_to_an_end() -> None:
    facts = JobFacts(job=8, restart=0, nodes=("n1",), policy="chain", chain="c")
    over = {"kind": "job", "chain": "c", "over": True, "exit_code": 2, "message": "wrong"}
    assert at_start(facts, [over]).action == "stop"
    assert at_start(facts, [over]).exit_code == 2
    assert at_start(facts, [{**over, "chain": "other"}, {**over, "over": False}]).action == "go"
    assert at_start(FACTS, [{**over, "chain": None}]).action == "go", "a job without a chain is never over"


def test_the_command_writes_one_line_for_the_script_and_a_row_for_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1", "PRETRAIN_RUN_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    hosts = ["--nodes", "n1\nn2", "--excluded", "", "--up", "n1\nn2\nn3"]
    assert main(["start", *hosts]) == 0
    assert capsys.readouterr().out == f"go 0 n1:{port_of(7, 1)}\n"
    append_json_line(tmp_path / "attempts.jsonl", MINE)
    append_json_line(tmp_path / "events.jsonl", ended(3, 70, "n2"))
    assert main(["launch", "--code", "143", *hosts]) == 0
    said = capsys.readouterr()
    assert said.out == "requeue 70 n2\n"
    assert said.err == "job 7: queued again, without n2; fault 1 in a row without a new checkpoint: told\n"
    row = read_json_lines(tmp_path / "events.jsonl")[-1]
    assert (row["kind"], row["job"], row["restart"], row["action"], row["excluded"]) == ("job", 7, 1, "requeue", ["n2"])
    monkeypatch.setenv("PRETRAIN_REQUEUE", "always")
    assert main(["start", *hosts]) == 2
    assert "must be one of requeue, chain, never" in capsys.readouterr().err


def test_preflight_that_was_lost_to_a_request_to_stop_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("PRETRAIN_RUN_DIR", str(tmp_path))
    assert main(["preflight", "--code", "138", "--asked", "--nodes", "n1"]) == 0
    assert capsys.readouterr().out.startswith("requeue 75 ")
    assert main(["preflight", "--code", "127", "--nodes", "n1"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("requeue 70 ")
    assert "preflight did not run (srun ended with 127)" in said.err


def test_a_run_folder_that_cannot_be_made_is_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("PRETRAIN_RUN_DIR", "/proc/nowhere")
    assert main(["start", "--nodes", "n1"]) == 5
    assert "/proc/nowhere: the run's folder cannot be written" in capsys.readouterr().err
