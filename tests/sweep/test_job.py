"""Jobs in memory: what they are called, and the order in which they are made."""

from __future__ import annotations

from diffuse.sweep.job import Job, JobStatus, sort_jobs


def test_what_is_costly_changes_least_and_otherwise_the_order_stays() -> None:
    levels = [(*each, "1") for each in (("a", "l", "x"), ("b", "l", "x"), ("a", "m", "x"), ("a", "l", "y"))]
    levels += [("b", "l", "x", "1"), ("a", "l", "x", "1"), ("a", "l", "x", "2")]
    jobs = [Job(number, [], levels=level) for number, level in enumerate(levels)]
    assert [job.number for job in sort_jobs(jobs)] == [0, 5, 6, 3, 2, 1, 4]


def test_a_job_is_called_by_what_is_its_own() -> None:
    job = Job(3, ['prompt="a  cat"', "num_inference_steps=2", "width=64"])
    assert job.label(["prompt", "num_inference_steps"]) == "prompt=a  cat num_inference_steps=2"
    assert job.run_name(["prompt", "num_inference_steps"]) == "prompt=a cat steps=2"
    assert job.label([]) == job.run_name([]) == "job 3"
    assert len(Job(0, [f"prompt={'x' * 99}"]).run_name(["prompt"])) == 50


def test_statuses_are_written_as_they_were() -> None:
    """Metrics of the summary run are named by them."""
    assert [f"jobs/{status}" for status in JobStatus] == [
        "jobs/made", "jobs/there", "jobs/failed", "jobs/left", "jobs/double"
    ]  # fmt: skip
