"""A log that comes in pieces, again and again, is written once, without the line that is for us."""

from hypothesis import given
from hypothesis import strategies as st

from shoal_ray.submission.follow import Lines, readable
from shoal_ray.submission.outcome import Job, Outcome, parse

STOPPED = Outcome("stopped", 143, 4800, None)
TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)


@given(
    lines=st.lists(TEXT.map(lambda text: text.replace("\n", " "))),
    told=st.booleans(),
    connections=st.lists(st.lists(st.integers(0, 200))),
)
def test_pieces_make_the_log(lines: list[str], told: bool, connections: list[list[int]]) -> None:
    shown = "".join(f"{line}\n" for line in lines)
    log = shown + (STOPPED.line() + "\n" if told else "")
    written: list[str] = []
    found = Lines(written.append)
    for cuts in [*connections, [len(log)]]:
        at = 0
        for cut in sorted(min(cut, len(log)) for cut in cuts):
            found.add(log[at:cut], at)
            at = cut
    found.end()
    assert "".join(written) == shown
    assert found.outcome == (STOPPED if told else None)
    assert readable(log) == (shown, found.outcome)


def test_a_line_that_was_cut_off_is_shown() -> None:
    assert readable("one\ntwo") == ("one\ntwo\n", None)
    assert readable("one\n" + STOPPED.line()) == ("one\n", STOPPED)


def test_no_other_line_is_an_outcome() -> None:
    for line in (
        "",
        "{}",
        '{"shoal_job": 1}',
        '{"shoal_job": {"how": "x"}}',
        '{"shoal_job',
        "[1]",
        "x" + STOPPED.line(),
    ):
        assert parse(line) is None
    assert parse(STOPPED.line()) == STOPPED


def test_a_job_is_what_it_said_and_else_what_ray_says() -> None:
    def job(status: str, code: int | None = None, outcome: Outcome | None = None) -> Job:
        return Job("x", status, "/runs/x", "train", 0.0, None, "node", "", code, outcome)

    assert [job(status).state for status in ("PENDING", "RUNNING", "STOPPED", "FAILED", "SUCCEEDED")] == [
        "queued",
        "running",
        "killed",
        "failed",
        "finished",
    ]
    assert job("STOPPED", outcome=STOPPED).state == "stopped"
    assert [job("SUCCEEDED", 0).exit_code, job("FAILED", 2).exit_code, job("FAILED").exit_code] == [0, 2, 1]
    assert job("STOPPED", outcome=STOPPED).exit_code == 143


def test_what_is_not_ours_in_the_details_of_a_job_is_no_option() -> None:
    details = {"submission_id": "x", "status": "RUNNING"}
    for said, options in (('["--on-head"]', ("--on-head",)), ("no JSON", ()), ("{}", ())):
        assert Job.of({**details, "metadata": {"shoal_options": said}}).options == options
    assert Job.of(details).options == ()
