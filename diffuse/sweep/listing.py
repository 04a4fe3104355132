"""Finds out what the jobs of a sweep would do, and makes nothing: no weight is read, no file written."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from diffuse.config.compose import ConfigValues
from diffuse.config.request import RequestDraft
from diffuse.schema import Download
from diffuse.sweep import job_folder
from diffuse.sweep.job import Job, JobStatus
from diffuse.sweep.runner import JobRunner


class JobLister(JobRunner):
    """Stands in for the runner of a sweep. A job that would be made keeps no status.

    Attributes:
        jobs: all that the sweeper has asked for.
    """

    jobs: list[Job]

    def run(self, jobs: Sequence[Job]) -> list[Job]:
        """Looks up which of `jobs` are there, double or wrong."""
        self.jobs = [*getattr(self, "jobs", []), *jobs]
        for job in jobs:
            self.interruption.check()
            self.look_up(job)
            if job.status is JobStatus.FAILED and job_folder.read_finished_job(job.folder, job.key) is not None:
                job.status = job.error = None  # its weights are not here, and would be fetched
        return list(jobs)

    def job_request(self, job: Job) -> tuple[DictConfig, RequestDraft]:
        """Returns a job's configuration and its request, as far as no checkpoint is needed to know it."""
        return super().compose_job(job)

    def compose_job(self, job: Job, resolved: ConfigValues | None = None) -> tuple[DictConfig, RequestDraft]:
        cfg, draft = super().compose_job(job, resolved)
        cfg.model.download = Download.never  # also where the user agrees: whether a job is there needs no weights
        return cfg, draft
